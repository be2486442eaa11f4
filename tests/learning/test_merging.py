"""What is saved of a model whose base memory holds in less than fp32 is as if it had been there in full."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.common.files import read_json
from tasks.learning.models.forward import unwrapped
from tasks.learning.models.loading import (
    join_members,
    load_policy,
    load_scorer,
    new_reward_model,
    normalise_scores,
    with_adapters,
)
from tasks.learning.models.merging import merged
from tasks.learning.models.saving import Rounding, save_model
from tasks.settings.params import Lora, Params
from tests.families import FAMILIES, causal

LORA = Lora(rank=4, alpha=8, targets="all-linear", quantize=None)


def learned(model: PreTrainedModel, *, coarse: bool) -> nn.Module:
    """A model with adapters that are not 0, its frozen linear layers in bf16 if `coarse`."""
    torch.manual_seed(3)
    adapted = with_adapters(model, LORA)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    if coarse:
        inner = unwrapped(adapted)
        head = inner.get_output_embeddings()
        for module in inner.modules():
            if isinstance(module, nn.Linear | Conv1D) and not module.weight.requires_grad and module is not head:
                module.weight.data = module.weight.bfloat16()
    return adapted


def folder_of(family: str, folder: Path, tiny_model: Path, dtype: torch.dtype = torch.float32) -> Path:
    causal(FAMILIES[family]).to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 stores weights transposed, and ties its head
def test_adapters_are_merged_into_the_folders_weights(family: str, tmp_path: Path, tiny_model: Path, params: Params):
    base, tokenizer = folder_of(family, tmp_path / "base", tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    fine, coarse = (learned(load_policy(base, params, trainable=True), coarse=each) for each in (False, True))
    assert merged(coarse) is coarse
    error = save_model(coarse, tokenizer, tmp_path / "coarse").merge_error
    assert save_model(fine, tokenizer, tmp_path / "fine") == Rounding(None, None)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "coarse" / name).read_bytes() == (tmp_path / "fine" / name).read_bytes()
    # Between half a step of bf16 and an even spread of roundings below it.
    assert error is not None
    assert 2**-11 < error < 2**-9


def test_a_folder_in_bf16_is_saved_in_bf16(tmp_path: Path, tiny_model: Path, params: Params):
    base = folder_of("llama", tmp_path / "base", tiny_model, torch.bfloat16)
    model = learned(load_policy(base, params, trainable=True), coarse=True)
    save_model(model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "out")
    saved, before, name = load_file(tmp_path / "out/model.safetensors"), load_file(base / "model.safetensors"), "q_proj"
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    path = f"model.layers.1.self_attn.{name}"
    layer = unwrapped(model).get_submodule(path)
    # Hu et al. 2021: W + alpha / r B A, here 8 / 4.
    a, b = (layer.get_parameter(f"{part}.default.weight").data for part in ("lora_A", "lora_B"))
    expected = (before[f"{path}.weight"].float() + 2 * b @ a).bfloat16()
    assert saved[f"{path}.weight"].equal(expected)
    assert saved["model.norm.weight"].equal(before["model.norm.weight"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_reward_models_keep_their_heads_and_what_their_configs_say(tmp_path: Path, tiny_model: Path, params: Params):
    def saved(folder: Path, *, coarse: bool) -> float | None:
        models = [learned(new_reward_model(tiny_model, params, "mean"), coarse=coarse) for _ in range(2)]
        for model in models:
            normalise_scores(model, 0.5, 2.0)
        join_members(models, 0.25)
        return save_model(models[0], AutoTokenizer.from_pretrained(tiny_model), folder, models[1:]).merge_error

    assert saved(tmp_path / "fine", coarse=False) is None
    assert saved(tmp_path / "coarse", coarse=True)
    for name in ("model.safetensors", "config.json", "member-2/model.safetensors", "member-2/config.json"):
        assert (tmp_path / "coarse" / name).read_bytes() == (tmp_path / "fine" / name).read_bytes()
    assert read_json(tmp_path / "coarse/config.json")["score_members"] == 2
    load_scorer(tmp_path / "coarse", params)
