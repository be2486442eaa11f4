"""Random damage of a base model's folder: a sentence that says what to fix, or a model that is whole.

One seed is one folder. `make fuzz` takes many more than the test command does.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.base import base
from tasks.data.base_model import architecture
from tasks.data.base_model.soundness import check_sound
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.settings.params import Params
from tasks.stage import classify
from tests.conftest import MakeParams

# A folder takes about as long as forty of the rows that other tests of random inputs make of a seed.
SEEDS = int(os.environ.get("TRUELINE_FUZZ_SEEDS", "1600")) // 40
BASE = Path("models/base")
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    31,
    299,
    300,
    2**31,
    2**63,
    10**12,
    10**30,
    0.5,
    -1.5,
    1e30,
    1e-30,
    float("nan"),
    float("inf"),
]
VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    "2",
    "../x",
    "\x1b[31m",
    "é" * 300,
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
    [[[]]],
    *NUMBERS,
]
PREFIXES = ["_orig_mod.", "module.", "base_model.model.", "model.", "x."]
DTYPES = [torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2]
MORE_KEYS = [
    "head_dim",
    "layer_types",
    "quantization_config",
    "num_labels",
    "id2label",
    "auto_map",
    "text_config",
    "dtype",
]
JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


# What a damage meets where an earlier one has been.
LEFT_OVER = (OSError, ValueError, IndexError, TypeError, RecursionError, SafetensorError)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is damaged, its weights in two shards beside it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_model, folder / "one")
    shutil.copytree(tiny_model, folder / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder / "shards", max_shard_size="60KB")
    return folder


@pytest.fixture
def settings(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Params]:
    monkeypatch.setattr(architecture, "SECONDS", 5)
    monkeypatch.setattr(architecture, "MEGABYTES", 300)
    monkeypatch.chdir(tmp_path)
    yield make_params(base={"source": "given"})


def any_place(content: Any, draw: random.Random) -> tuple[Any, Any]:
    """An object or list within a JSON value, and a key or place in it."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return {"": 0}, ""
        key = draw.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and draw.random() < 0.8:
            content = content[key]
        else:
            return content, key


def spoil_json(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice(JSON_FILES + ["config.json"] * 3)
    content = json.loads(path.read_text())
    where, key = any_place(content, draw)
    match draw.randrange(4):
        case 0:
            del where[key]
        case 1 if path.name == "config.json":
            content[draw.choice(MORE_KEYS)] = draw.choice(VALUES)
        case _:
            where[key] = draw.choice(VALUES)
    path.write_text(json.dumps(content))


def spoil_bytes(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(each for each in folder.iterdir() if each.is_file()))
    content = bytearray(path.read_bytes())
    match draw.randrange(4):
        case 0:
            content = content[: draw.randrange(len(content) + 1)]
        case 1:
            content += draw.randbytes(draw.randrange(1, 50))
        case 2:
            content = bytearray(draw.randbytes(draw.randrange(200)))
        case _:
            for _ in range(draw.randrange(1, 20)):
                reach = len(content) if draw.random() < 0.5 else min(len(content), 400)
                content[draw.randrange(reach)] = draw.randrange(256)
    path.write_bytes(content)


def spoil_weights(folder: Path, draw: random.Random) -> None:
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    weights = load_file(path)
    key = draw.choice(sorted(weights))
    match draw.randrange(7):
        case 0:
            del weights[key]
        case 1:
            weights = {draw.choice(PREFIXES) + each: tensor for each, tensor in weights.items()}
        case 2:
            weights[key] = weights[key].to(draw.choice(DTYPES))
        case 3:
            weights[key] = weights[key].flatten()[draw.randrange(2) :].clone()
        case 4:
            weights[key].view(-1)[0] = draw.choice([float("nan"), float("inf"), 1e38])
        case 5:
            weights[draw.choice([f"{key}.lora_A", "score.weight", "é", ""])] = torch.zeros(draw.randrange(3))
        case _:
            weights = {each: tensor.to(draw.choice(DTYPES[3:6])) for each, tensor in weights.items()}
    save_file(weights, path, metadata={"format": "pt"} if draw.random() < 0.9 else None)


def spoil_files(folder: Path, draw: random.Random) -> None:
    names = [*sorted(path.name for path in folder.iterdir()), "adapter_config.json", "merges.txt", "chat_template.json"]
    path = folder / draw.choice(names)
    if path.is_dir():
        return
    path.unlink(missing_ok=True)
    match draw.randrange(8):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to("/etc/hostname")
        case 4:
            path.symlink_to(path.name)
        case 5:
            path.write_text(
                draw.choice(["", "{}", "[]", "[" * 4000, "x" * 100, "{% for x in range(9**9) %}{% endfor %}"])
            )
        case 6:
            shutil.copy(draw.choice(sorted(each for each in folder.iterdir() if each.is_file())), path)
        case _:
            pass


def spoil_index(folder: Path, draw: random.Random) -> None:
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    content = json.loads(path.read_text())
    where, key = any_place(content, draw)
    where[key] = draw.choice([*VALUES, "/etc/hostname", "../given/config.json", "config.json"])
    path.write_text(json.dumps(content))


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    spoil_json,
    spoil_bytes,
    spoil_weights,
    spoil_files,
    spoil_index,
]


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(8))
def test_a_damaged_folder_is_refused_in_a_sentence_or_its_model_is_sound(part: int, whole: Path, settings: Params):
    for seed in range(part, SEEDS, 8):
        draw = random.Random(seed)
        shutil.rmtree("given", ignore_errors=True)
        shutil.copytree(whole / draw.choice(["one", "one", "shards"]), "given")
        for damage in draw.choices(DAMAGES, weights=[5, 2, 3, 2, 1], k=draw.choice([1, 1, 1, 2, 3])):
            try:
                damage(Path("given"), draw)
            except (
                OSError,
                ValueError,
                IndexError,
                TypeError,
                RecursionError,
                SafetensorError,
            ):  # what is left of an earlier damage
                break
        try:
            base(settings)
        except Exception as error:
            kind, message = classify(error)
            assert kind == "input", f"seed {seed}: {type(error).__name__}: {error}"
            assert message.startswith(("given", "base.")), f"seed {seed}: {message}"
            assert message.isprintable(), f"seed {seed}: {message!r}"
            assert ": " in message
            assert not BASE.exists()
        else:
            check(seed)
            shutil.rmtree("models")


def check(seed: int) -> None:
    """What was taken is whole: regular files alone, a model that loads by every weight and reads a conversation."""
    assert all(path.is_file() and not path.is_symlink() for path in BASE.iterdir()), seed
    loaded: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, output_loading_info=True)
    model, found = loaded
    assert not any(found.values()), seed
    tokenizer = load_tokenizer(BASE)
    row = encode(tokenizer, [{"role": "user", "content": "please send it back"}], "we refund it")
    ids = row.prompt + row.completion
    assert max(ids) < len(model.get_input_embeddings().weight), seed
    assert model(torch.tensor([ids])).logits.isfinite().all(), seed
    check_sound(model, None if model.config.max_position_embeddings is None else 32, str(seed))
