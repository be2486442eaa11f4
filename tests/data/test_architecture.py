import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    CodeGenConfig,
)

from tasks.common.errors import InputError
from tasks.data.base_model import architecture, weights
from tasks.data.base_model.architecture import check_model
from tests.families import FAMILIES

Weights = dict[str, Tensor]
FILE, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "given"))


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    changed = change(load_file(folder / FILE))
    save_file({key: tensor.contiguous() for key, tensor in changed.items()}, folder / FILE, metadata={"format": "pt"})


def configure(folder: Path, file: str = CONFIG, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        check_model(folder, "given")
    message = str(refused.value)
    assert message.startswith("given: ")
    assert "\n" not in message
    return message


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda found: {key: tensor for key, tensor in found.items() if not any(part in key for part in parts)}


def with_prefix(prefix: str) -> Callable[[Weights], Weights]:
    return lambda found: {prefix + key: tensor for key, tensor in found.items()}


def test_a_model_that_is_what_it_says_is_taken(folder: Path):
    check_model(folder, "given")


# Names


@pytest.mark.parametrize(
    ("prefix", "cure"),
    [
        ("_orig_mod.", "model._orig_mod.save_pretrained"),
        ("module.", "model.module.save_pretrained"),
        ("module._orig_mod.", "save_pretrained"),
        ("_fsdp_wrapped_module.", "unwrap_model"),
        ("base_model.model.", "merge_and_unload"),
        ("pretrained_model.", "model.pretrained_model.save_pretrained"),
        ("unheard.", "copy the folder again"),
    ],
)
def test_names_with_a_wrappers_prefix_are_refused_with_the_cure(folder: Path, prefix: str, cure: str):
    rewrite(folder, with_prefix(prefix))
    message = refusal(folder)
    assert f"unexpected {prefix}" in message
    assert cure in message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without(".layers.1."), "missing model.layers.1.input_layernorm.weight"),
        (without("embed_tokens"), "missing model.embed_tokens.weight)"),
        (without("lm_head"), "missing lm_head.weight): set tie_word_embeddings"),
        (lambda found: found | {"model.layers.7.x": torch.zeros(1)}, "unexpected model.layers.7.x)"),
        (lambda found: found | {"score.weight": torch.zeros(1, 32)}, "score.weight): give the language model"),
        (lambda found: found | {"v_head.summary.weight": torch.zeros(1)}, "model.pretrained_model.save_pretrained"),
        (
            lambda found: found | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1)},
            "merge the adapter first",
        ),
        (lambda found: found | {"model.norm.weight": torch.zeros(31)}, "mismatched model.norm.weight of 31 for 32"),
        (lambda _: {}, "missing lm_head.weight, model.embed_tokens.weight, "),
    ],
)
def test_weights_that_do_not_belong_to_the_config_are_named(folder: Path, change: Any, sentence: str):
    rewrite(folder, change)
    assert sentence in refusal(folder)


def test_the_first_names_are_given_and_how_many_more(folder: Path):
    rewrite(folder, without(".layers.1."))  # a layer has two norms, four of attention, three of the feed-forward
    assert "and 6 more" in refusal(folder)


def test_names_with_one_more_prefix_that_transformers_takes_off_are_taken(folder: Path):
    rewrite(folder, with_prefix("model."))
    check_model(folder, "given")


def test_a_tied_head_need_not_be_there_and_old_tables_may(folder: Path):
    configure(folder, tie_word_embeddings=True)
    rewrite(folder, without("lm_head"))
    rewrite(folder, lambda found: found | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    check_model(folder, "given")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_taken_as_it_saves_itself_and_not_without_a_tensor(family: str, tmp_path: Path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family])).save_pretrained(tmp_path)
    check_model(tmp_path, "given")
    last = sorted(load_file(tmp_path / FILE))[-1]
    rewrite(tmp_path, without(last))
    assert last in refusal(tmp_path).split("missing")[1]


def test_a_model_with_another_head_is_no_language_model(tmp_path: Path):
    model: Any = AutoModelForSequenceClassification.from_config(deepcopy(FAMILIES["llama"]))
    model.save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert "missing lm_head.weight; unexpected score.weight" in message
    assert "give the language model that the head was put on" in message


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_weight_that_is_no_number_is_found(folder: Path, value: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "NUMBERS_AT_ONCE", 100)

    def spoil(found: Weights) -> Weights:
        found["model.layers.1.mlp.up_proj.weight"][-1, -1] = value
        return found

    rewrite(folder, spoil)
    assert "'model.layers.1.mlp.up_proj.weight' in model.safetensors holds NaN or infinity" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(folder: Path, dtype: torch.dtype):
    rewrite(
        folder, lambda found: {key: tensor.to(dtype) if "up_proj" in key else tensor for key, tensor in found.items()}
    )
    message = refusal(folder)
    assert "'model.layers.0.mlp.up_proj.weight' in model.safetensors holds " in message
    assert "and 1 more: give the model that it was made from" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_precisions_are_taken(folder: Path, dtype: torch.dtype):
    rewrite(folder, lambda found: {key: tensor.to(dtype) for key, tensor in found.items()})
    check_model(folder, "given")


def test_a_tensor_in_two_shards_is_refused(folder: Path):
    names = load_file(folder / FILE)
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        shutil.copy(folder / FILE, folder / shard)
    (folder / FILE).unlink()
    weight_map = {name: shards[number % 2] for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert f"is in {' and '.join(shards)}" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"x" * 7, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_safetensors_is_refused(folder: Path, content: bytes):
    (folder / FILE).write_bytes(content)
    refusal(folder)


# Values of config.json


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 10**12),
        ("vocab_size", 299),
        ("vocab_size", 0),
        ("vocab_size", -1),
        ("vocab_size", 1.5),
        ("vocab_size", "300"),
        ("vocab_size", None),
        ("hidden_size", 33),
        ("hidden_size", [32]),
        ("hidden_size", 10**12),
        ("num_hidden_layers", "2"),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 1),
        ("num_attention_heads", 5),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 0),
        ("head_dim", 7),
        ("hidden_act", "unheard"),
        ("hidden_act", 3),
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", "x"),
        ("rms_norm_eps", float("nan")),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_type": "unheard"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "x"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0.0}),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("dtype", "unheard"),
        ("model_type", ["llama"]),
        ("model_type", None),
        ("model_type", "t5"),
        ("layer_types", ["unheard"]),
        ("id2label", 3),
        ("per_layer_config", 3),
        ("eos_token_id", 300),
        ("eos_token_id", [2, 10**9]),
        ("eos_token_id", "2"),
        ("pad_token_id", 300),
        ("pad_token_id", -1),
        ("bos_token_id", True),
    ],
)
def test_a_value_that_cannot_be_is_refused(folder: Path, key: str, value: Any):
    changes: dict[str, Any] = {key: value}
    configure(folder, **changes)
    assert CONFIG in refusal(folder)


@pytest.mark.parametrize("value", [300, [1, 300], "x", -1])
def test_an_id_of_the_generation_settings_beyond_the_embedding_is_refused(folder: Path, value: object):
    configure(folder, "generation_config.json", eos_token_id=value)
    assert "eos_token_id in generation_config.json is " in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": 1, "eos_token_id": 2}'])
def test_generation_settings_that_are_none_are_refused(folder: Path, text: str):
    (folder / "generation_config.json").write_text(text)
    assert "generation_config.json" in refusal(folder)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels"])
def test_numbers_that_would_never_be_counted_up_to_are_bounded(folder: Path, key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(architecture, "SECONDS", 3)
    monkeypatch.setattr(architecture, "MEGABYTES", 300)
    absurd: dict[str, Any] = {key: 10**12}
    configure(folder, **absurd)
    assert "too large to lay out: fix its numbers" in refusal(folder)


def test_tables_that_would_not_fit_are_refused_before_they_are_made(tmp_path: Path):
    sizes: dict[str, Any] = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    AutoModelForCausalLM.from_config(CodeGenConfig(**sizes, **ids, n_positions=64)).save_pretrained(tmp_path)
    check_model(tmp_path, "given")
    configure(tmp_path, n_positions=10**9)  # a row of 4 angles for each
    assert "too large to lay out: fix its numbers" in refusal(tmp_path)


def test_a_model_whose_tokens_see_those_behind_them_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    BertLMHeadModel(BertConfig(vocab_size=40, **sizes, initializer_range=0.2)).save_pretrained(tmp_path)
    assert "tokens see those behind them" in refusal(tmp_path)
