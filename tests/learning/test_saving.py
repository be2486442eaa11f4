"""The dtype that models are saved in, and what rounding to it costs."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.common.files import MODELS, read_json
from tasks.learning.models.loading import load_policy, load_reward, new_reward_model, score_head, with_adapters
from tasks.learning.models.saving import save_model
from tasks.sft import sft
from tests.families import FAMILIES, causal


@pytest.fixture
def bf16_base(tmp_path, tiny_model):
    folder = tmp_path / "bf16"
    causal(FAMILIES["llama"]).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def dtypes(folder):
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize(
    ("setting", "expected"), [("base", torch.bfloat16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_bf16_base_is_saved_as_the_settings_say(bf16_base, make_params, tmp_path, setting, expected, rank):
    params = make_params(runtime={"output_dtype": setting}, lora={"rank": rank})
    model = with_adapters(load_policy(bf16_base, params, trainable=True), params.lora)
    save_model(model, AutoTokenizer.from_pretrained(bf16_base), tmp_path / "out")
    assert dtypes(tmp_path / "out") == {expected}
    assert read_json(tmp_path / "out/config.json")["dtype"] == str(expected).removeprefix("torch.")


def test_an_fp32_base_may_be_saved_in_bf16(make_params, workspace, tmp_path):
    params = make_params(runtime={"output_dtype": "bf16"})
    model = load_policy(MODELS / "sft", params, trainable=True)
    save_model(model, AutoTokenizer.from_pretrained(MODELS / "sft"), tmp_path / "out")
    assert dtypes(tmp_path / "out") == {torch.bfloat16}


def test_a_scalar_head_is_saved_in_fp32(bf16_base, params, tmp_path):
    model = new_reward_model(bf16_base, params)
    head = score_head(model).get_parameter("weight").clone()
    save_model(model, AutoTokenizer.from_pretrained(bf16_base), tmp_path / "out")
    saved = load_file(tmp_path / "out/model.safetensors")
    assert saved["score.weight"].equal(head)
    assert {weight.dtype for name, weight in saved.items() if name != "score.weight"} == {torch.bfloat16}
    again = load_reward(tmp_path / "out", params, trainable=True)
    assert score_head(again).get_parameter("weight").equal(head)
    save_model(again, AutoTokenizer.from_pretrained(bf16_base), tmp_path / "critic")
    assert dtypes(tmp_path / "critic") == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(("change", "least", "most"), [(1e-6, 0.0, 0.05), (0.3, 0.99, 1.01)])
def test_the_share_of_the_update_that_is_left(bf16_base, params, tmp_path, change, least, most):
    model = load_policy(bf16_base, params, trainable=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(change * torch.randn_like(weight))
    cost = save_model(model, AutoTokenizer.from_pretrained(bf16_base), tmp_path / "out")
    assert cost.merge_error is None
    assert cost.update_saved is not None
    assert least <= cost.update_saved <= most


def test_a_stage_says_that_its_update_is_lost(workspace, noted_run, make_params, caplog):
    AutoModelForCausalLM.from_pretrained(MODELS / "base").bfloat16().save_pretrained(MODELS / "base")
    settings = {"learning_rate": 1e-9, "epochs": 1}
    with caplog.at_level(logging.WARNING):
        sft(make_params(sft=settings))
    assert "% is left in the saved weights" in caplog.text
    assert read_json(MODELS.parent / "metrics/sft.json")["update_saved"] < 0.1
