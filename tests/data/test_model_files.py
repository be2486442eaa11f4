import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.common.errors import InputError
from tasks.data.base_model.model_files import CONFIG, INDEX, WEIGHTS, copy_model
from tests.conftest import MODEL_FILES

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "given"))


def copied(folder: Path) -> list[str]:
    draft = folder.parent / "draft"
    copy_model(folder, draft, "given")
    for path in draft.iterdir():
        assert not path.is_symlink()
        assert path.read_bytes() == (folder / path.name).read_bytes()
    return sorted(path.name for path in draft.iterdir())


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        copy_model(folder, folder.parent / "draft", "given")
    assert not (folder.parent / "draft").exists()
    return str(refused.value)


def change(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index(folder: Path, content: object) -> None:
    (folder / WEIGHTS).rename(folder / SHARD)
    (folder / INDEX).write_text(json.dumps(content))


def shards(folder: Path, name: str = SHARD) -> None:
    names = load_file(folder / WEIGHTS)
    index(folder, {"metadata": {}, "weight_map": dict.fromkeys(names, name)})


def test_only_the_copy_of_the_weights_that_is_loaded_comes_along(folder: Path):
    everything = [path.name for path in folder.iterdir() if path.name != "generation_config.json"]
    for name in ("consolidated.safetensors", "model.fp16.safetensors", SHARD, "model.safetensors.index.json", "a.py"):
        shutil.copy(folder / WEIGHTS, folder / name)
    assert set(everything) == set(MODEL_FILES)
    assert copied(folder) == sorted([*MODEL_FILES, "generation_config.json"])


def test_of_shards_those_come_along_that_the_index_names(folder: Path):
    shards(folder)
    shutil.copy(folder / SHARD, folder / "model-00002-of-00002.safetensors")
    assert {SHARD, INDEX} <= set(copied(folder))
    assert "model-00002-of-00002.safetensors" not in copied_again(folder)


def copied_again(folder: Path) -> list[str]:
    shutil.rmtree(folder.parent / "draft")
    return copied(folder)


@pytest.mark.parametrize("left", ["adapter alone", "adapter beside whole weights", "without its settings"])
def test_an_adapter_is_refused_with_how_to_merge_it(folder: Path, left: str):
    if left == "adapter alone":
        for name in (WEIGHTS, CONFIG):
            (folder / name).unlink()
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    if left != "without its settings":
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    message = refusal(folder)
    assert "adapter" in message
    assert "merge_and_unload" in message
    assert ("some/base" in message) == (left != "without its settings")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["model.fp16.safetensors"], r"variant='fp16'"),
        (["model.bf16-00001-of-00002.safetensors"], r"variant='bf16'"),
        (["model-00001-of-00002.fp16.safetensors"], r"variant='fp16'"),
        ([SHARD], "but no model.safetensors.index.json"),
        (["consolidated.safetensors"], "only consolidated.safetensors"),
        (["weights.gguf"], "gguf_file='weights.gguf'"),
        ([], "no safetensors weights: convert"),
    ],
)
def test_weights_by_another_name_are_refused_with_how_to_save_them(folder: Path, names: list[str], sentence: str):
    for name in names:
        shutil.copy(folder / WEIGHTS, folder / name)
    (folder / WEIGHTS).unlink()
    assert sentence in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"metadata": {}},
        {"weight_map": {"a": SHARD}},
        {"metadata": {}, "weight_map": []},
        {"metadata": {}, "weight_map": {}},
        {"metadata": {}, "weight_map": {"a": 3}},
        {"metadata": {}, "weight_map": {"a": None}},
        {"metadata": {}, "weight_map": {"a": "../x.safetensors"}},
        {"metadata": {}, "weight_map": {"a": "/etc/passwd"}},
        {"metadata": {}, "weight_map": {"a": "sub/x.safetensors"}},
        {"metadata": {}, "weight_map": {"a": "config.json"}},
        {"metadata": {}, "weight_map": {"a": ""}},
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, content: object):
    index(folder, content)
    assert INDEX in refusal(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path):
    shards(folder, "model-00009-of-00009.safetensors")
    assert "lacks model-00009-of-00009.safetensors" in refusal(folder)


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": method} for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "mxfp4")]
    + [3, "int8", {}],
)
@pytest.mark.parametrize("nested", [False, True])
def test_quantised_weights_are_refused(folder: Path, settings: object, nested: bool):
    found = {"quantization_config": settings}
    change(folder, **({"text_config": found} if nested else found))
    message = refusal(folder)
    assert "quantised" in message
    assert "give the model that it was made from" in message
    if isinstance(settings, dict) and settings:
        assert settings["quant_method"] in message


def test_a_config_that_says_it_is_not_quantised_is_taken(folder: Path):
    change(folder, quantization_config=None)
    assert WEIGHTS in copied(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no JSON object"),
        ("[" * 5000, "is not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "twice"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"transformers_weights": "other.safetensors"}', "transformers_weights"),
        ('{"auto_map": {"AutoModel": "a.B"}}', "code of its own"),
    ],
)
def test_a_config_that_is_none_is_refused(folder: Path, text: str | bytes, sentence: str):
    (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sentence in refusal(folder)


# --- Links, pipes and devices


def link(folder: Path, name: str, target: Path | str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json", "merges.txt"])
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, name: str):
    outside = folder.parent / "outside"
    shutil.copy(folder / (name if (folder / name).exists() else CONFIG), outside)
    link(folder, name, outside)
    assert f"the link {name} leads out of the folder" in refusal(folder)


@pytest.mark.parametrize("target", ["nowhere", WEIGHTS])
def test_a_link_to_nowhere_or_itself_is_refused(folder: Path, target: str):
    link(folder, WEIGHTS, target)
    assert f"the link {WEIGHTS} leads nowhere" in refusal(folder)


def test_a_link_within_the_folder_is_followed(folder: Path):
    (folder / "parts").mkdir()
    (folder / WEIGHTS).rename(folder / "parts/w")
    link(folder, WEIGHTS, "parts/w")
    assert WEIGHTS in copied(folder)


def test_a_folder_within_that_links_out_is_not_followed(folder: Path):
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "tool.jinja").write_text("{{ messages }}")
    link(folder, "additional_chat_templates", outside)
    assert "additional_chat_templates is a link" in refusal(folder)


def test_a_folder_that_is_a_link_itself_is_taken(folder: Path):
    link(folder.parent, "linked", folder)
    assert WEIGHTS in copied(folder.parent / "linked")


@pytest.mark.parametrize("digits", [40, 64])
def test_the_hub_caches_own_links_are_followed_and_no_others(folder: Path, digits: int):
    snapshot, blob = folder.parent / "models--a--b/snapshots/1234", "ab" * (digits // 2)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot / WEIGHTS).rename(snapshot.parents[1] / "blobs" / blob)
    link(snapshot, WEIGHTS, f"../../blobs/{blob}")
    copy_model(snapshot, folder.parent / "draft", "given")
    assert (folder.parent / "draft" / WEIGHTS).read_bytes() == (snapshot / WEIGHTS).read_bytes()
    shutil.rmtree(folder.parent / "draft")
    (snapshot.parents[1] / "blobs" / blob).rename(snapshot.parents[1] / "blobs/secret")
    link(snapshot, WEIGHTS, "../../blobs/secret")
    with pytest.raises(InputError, match="leads out of the folder"):
        copy_model(snapshot, folder.parent / "draft", "given")


@pytest.mark.parametrize("cache", ["cache/files/md5", "cache"])  # of DVC 3, and before
def test_links_into_the_cache_of_dvc_are_followed(folder: Path, cache: str):
    place = folder.parent / cache / "ab" / ("c" * 30)
    place.parent.mkdir(parents=True)
    (folder / WEIGHTS).rename(place)
    link(folder, WEIGHTS, place)
    assert WEIGHTS in copied(folder)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json", "vocab.txt"])
def test_what_is_no_regular_file_is_never_opened(folder: Path, kind: str, name: str):
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        link(folder, name, "/dev/zero")
    assert f"{name} is no regular file" in refusal(folder)


def test_all_templates_of_a_tokenizer_with_several_come_along(folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "tools", "rag": "documents"}
    tokenizer.save_pretrained(folder)
    copy_model(folder, folder.parent / "draft", "given")
    assert AutoTokenizer.from_pretrained(folder.parent / "draft").chat_template == tokenizer.chat_template


def test_a_folder_of_templates_that_is_a_link_is_refused(folder: Path):
    (folder / "additional_chat_templates").symlink_to("/etc")
    assert refusal(folder) == "given: additional_chat_templates is a link: put the folder itself there"
