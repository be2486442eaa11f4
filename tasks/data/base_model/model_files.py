"""The files of a base model: which ones are loaded, and how they come in from a folder or from the hub's cache."""

import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.common.errors import InputError, quoted
from tasks.common.strict_json import JsonError, parse_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# What a model folder needs beside its weights, and nothing else: no code.
SETTINGS_FILES = (
    *(CONFIG, "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
TEMPLATES = "additional_chat_templates"  # where a tokenizer with several keeps all but the default one
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What is fetched from the hub: the adapter's files only so that they can be named.
FETCHED = (*SETTINGS_FILES, f"{TEMPLATES}/*.jinja", INDEX, "*.safetensors", *ADAPTER_FILES)
NOT_FETCHED = ("*/*.safetensors", "consolidated*.safetensors")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
VARIANT = re.compile(r"model(?:-\d{5}-of-\d{5})?\.(\w+?)(?:-\d{5}-of-\d{5})?\.safetensors")
LARGEST_JSON = 2**26  # bytes; the index of a thousand experts has a hundredth
# Where the hub's cache and DVC's hold a file under the hash of its content: no other file of a machine lies there.
HUB_BLOB, DVC_OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}"), re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}")


def copy_model(source: Path, draft: Path, name: str) -> None:
    """Copy what is loaded of a model folder, byte by byte: its settings, its tokenizer and one copy of its weights.

    Args:
        source: the folder, or a snapshot in the hub's cache.
        draft: is made.
        name: how the source is called in errors.

    Raises:
        InputError: a part is missing, is an adapter's or quantised, is no regular file, or a link leads elsewhere.
    """
    if any((source / file).exists() for file in ADAPTER_FILES):
        raise InputError(_about_adapter(source, name))
    if not (source / CONFIG).exists():
        raise InputError(f"{name} has no {CONFIG}: give a Hugging Face model folder")
    if not any((source / file).exists() for file in VOCABULARY_FILES):
        raise InputError(f"{name} has no tokenizer: save the model's tokenizer there (tokenizer.save_pretrained)")
    settings = [*(file for file in SETTINGS_FILES if _is_there(source / file)), *_templates_of(source, name)]
    wanted = [*settings, *_weights_of(source, name)]
    for file in wanted:
        _check_regular(source, file, name)
    check_settings(read_settings(source / CONFIG, name), name)
    for file in wanted:
        (draft / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, draft / file)


def check_model_folder(folder: Path) -> None:
    """Find what DVC would wait for, or could not take in, when it reads all of a model folder.

    Raises:
        InputError: a pipe, socket, device, or link to nothing lies in it.
    """
    for path in sorted(folder.rglob("*")):
        try:
            mode = path.stat().st_mode
        except OSError:  # a link to nothing, or to itself
            raise InputError(f"{path} is a link that leads nowhere: put the file there, or remove it") from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError(f"{path} is a pipe, socket or device: remove it, or put the file there")


def weight_files(folder: Path, name: str) -> list[str]:
    """Names of the files whose weights transformers loads from a folder, in order.

    Raises:
        InputError: there are none, or the index does not name them.
    """
    return [file for file in _weights_of(folder, name) if file != INDEX]


def read_settings(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a model folder.

    Raises:
        InputError: it is none, or too large to be one.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{name}: {path.name} has over {LARGEST_JSON >> 20} MiB: copy the folder again")
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except JsonError as error:
        raise InputError(f"{name}: {path.name} {error}: {error.cure or 'copy the folder again'}") from None
    except UnicodeDecodeError:
        raise InputError(f"{name}: {path.name} is not UTF-8: copy the folder again") from None
    if not isinstance(settings, dict):
        raise InputError(f"{name}: {path.name} is no JSON object: copy the folder again")
    return settings


def check_settings(settings: dict[str, Any], name: str) -> None:
    """Refuse what config.json says of a model that cannot be trained as it is.

    Raises:
        InputError: it needs code of its own, is quantised, or keeps its weights elsewhere.
    """
    if settings.get("auto_map"):
        raise InputError(f"{name} needs code of its own (auto_map in {CONFIG}): choose a model transformers brings")
    for key in ("quantization_config", "compression_config"):
        for found in _values_of(settings, key):
            method = found.get("quant_method") if isinstance(found, dict) else found
            raise InputError(
                f"{name} is quantised ({key} in {CONFIG}: {quoted(method)}), which cannot be trained:"
                " give the model that it was made from, in 16 or 32 bits"
            )
    if settings.get("transformers_weights"):
        raise InputError(f"{name}: {CONFIG} names its weights (transformers_weights): save it with save_pretrained")


def _values_of(settings: dict[str, Any], key: str) -> Iterator[object]:
    """What a key holds, but null, at whatever depth."""
    waiting: list[object] = [settings]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if each.get(key) is not None:
                yield each[key]
            waiting += each.values()


def _templates_of(source: Path, name: str) -> list[str]:
    if (source / TEMPLATES).is_symlink():
        raise InputError(f"{name}: {TEMPLATES} is a link: put the folder itself there")
    return sorted(f"{TEMPLATES}/{file.name}" for file in (source / TEMPLATES).glob("*.jinja"))


def _weights_of(source: Path, name: str) -> list[str]:
    """The weights that transformers loads: one file, or else the shards of the index, behind which they stand."""
    if _is_there(source / WEIGHTS):
        return [WEIGHTS]
    if not _is_there(source / INDEX):
        raise InputError(_about_missing_weights(source, name))
    _check_regular(source, INDEX, name)
    shards = _shards(read_settings(source / INDEX, name), name)
    for shard in shards:
        if not _is_there(source / shard):
            raise InputError(f"{name} lacks {shard}, which its index names: copy the folder again")
    return [INDEX, *shards]


def _shards(index: dict[str, Any], name: str) -> list[str]:
    """The files that an index names, each a plain name."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(index.get("metadata"), dict):
        raise InputError(f"{name}: {INDEX} lacks weight_map or metadata: copy the folder again")
    for shard in shards.values():
        if not isinstance(shard, str) or shard != PurePosixPath(shard).name or not shard.endswith(".safetensors"):
            raise InputError(
                f"{name}: {INDEX} names {quoted(shard)}, which is no safetensors file in the folder: fix it"
            )
    return sorted(set(shards.values()))


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _check_regular(source: Path, file: str, name: str) -> None:
    """A wanted file is a regular one, and lies in the folder or in a cache that names files by their content."""
    path = source / file
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, until Python 3.13
        raise InputError(f"{name}: the link {file} leads nowhere: put the file there") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{name}: {file} is no regular file: remove it, or put the file there")
    if not _is_own(source.resolve(), target):  # where it, or a folder on the way to it, is a link
        raise InputError(f"{name}: the link {file} leads out of the folder: put the file itself there")


def _is_own(folder: Path, target: Path) -> bool:
    """Whether the target of a link is the folder's: it lies there, or under its hash in the cache it was taken from."""
    if target.is_relative_to(folder):
        return True
    repository = folder.parents[1] if folder.parent.name == "snapshots" else None
    if repository is not None and target.parent == repository / "blobs":
        return HUB_BLOB.fullmatch(target.name) is not None
    return DVC_OBJECT.fullmatch("/".join(target.parts[-2:])) is not None


def _about_adapter(source: Path, name: str) -> str:
    settings = read_settings(source / ADAPTER_FILES[0], name) if (source / ADAPTER_FILES[0]).is_file() else {}
    base = settings.get("base_model_name_or_path")
    whose = f" of {quoted(base)}" if base else ""
    return (
        f"{name} is an adapter{whose}, no whole model: merge it into its base first"
        " (peft: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(another folder)),"
        " or remove adapter_config.json and adapter_model.safetensors where whole weights lie beside it"
    )


def _about_missing_weights(source: Path, name: str) -> str:
    """Say what lies there in the place of weights that transformers would load, and how to make them."""
    names = sorted(path.name for path in source.glob("*.safetensors"))
    if variants := [found[1] for found in map(VARIANT.fullmatch, names) if found]:
        how = f"from_pretrained(folder, variant='{variants[0]}'), then save_pretrained without one"
        return f"{name} has its weights only in a variant ({variants[0]}): save them under the usual name ({how})"
    if shards := [each for each in names if SHARD.fullmatch(each)]:
        return f"{name} has shards ({shards[0]}) but no {INDEX}, which says what is in them: copy the folder again"
    if names:
        how = f"convert it to transformers' form and save_pretrained it, or rename it to {WEIGHTS} if it has that form"
        return f"{name} has no {WEIGHTS}, only {_some(names)}: {how}"
    if ggufs := sorted(path.name for path in source.glob("*.gguf")):
        how = f"from_pretrained(folder, gguf_file='{ggufs[0]}'), then save_pretrained"
        return f"{name} has no safetensors weights, only {ggufs[0]}: convert to safetensors ({how})"
    return f"{name} has no safetensors weights: convert to safetensors (load, then model.save_pretrained)"


def _some(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3])
