"""The frozen base under adapters in 4 or 8 bits."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2LMHeadModel

from tasks.common.errors import InputError
from tasks.common.files import MODELS, read_json
from tasks.data.encoding.tokens import load_tokenizer
from tasks.dpo import dpo
from tasks.learning import processes
from tasks.learning.batches import collate
from tasks.learning.models.loading import load_policy, new_reward_model, with_adapters
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.models.quantised import QuantisedLinear, quantise, quantised_in
from tasks.learning.ppo.scoring import sampler_matches_training
from tasks.learning.sampling.sampler import generate
from tasks.settings.choices import Precision, Quantisation
from tests.conftest import MakeParams
from tests.families import FAMILIES, ROWS

CPU = torch.device("cpu")
# Relative errors of normal weights: of NF4 0.09 (its levels are 16 quantiles), of 255 even levels 0.006.
ERRORS: dict[Quantisation, tuple[float, float]] = {"nf4": (0.08, 0.1), "int8": (0.005, 0.007)}
# Bytes a weight: the number, and a scale per 64: of 8 bits (and one of 32 per 256 scales), or of 32.
BYTES: dict[Quantisation, float] = {"nf4": 0.5 + 1 / 64, "int8": 1 + 4 / 64}


@pytest.fixture(params=list(ERRORS))
def kind(request: pytest.FixtureRequest) -> Quantisation:
    found: Quantisation = request.param
    return found


def layer_of(kind: Quantisation, inputs: int = 192) -> tuple[nn.Linear, QuantisedLinear]:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, 256)
    nn.init.normal_(layer.weight)
    return layer, QuantisedLinear(layer, kind, CPU)


def test_weights_are_near_what_they_were_and_small(kind: Quantisation):
    layer, small = layer_of(kind)
    weight = small.dequantised(torch.float32)
    least, most = ERRORS[kind]
    assert least < ((weight - layer.weight).norm() / layer.weight.norm()).item() < most
    assert len(weight.flatten()[:64].unique()) <= (16 if kind == "nf4" else 64)
    held = small.weight.nbytes + small.scales.absmax.nbytes
    assert held / weight.numel() == BYTES[kind]


@pytest.mark.parametrize("inputs", [32, 96, 100, 129])  # blocks that end within rows, and a last one that is not full
def test_blocks_need_not_end_with_rows(kind: Quantisation, inputs: int):
    layer, small = layer_of(kind, inputs)
    least, most = ERRORS[kind]
    assert least < ((small.dequantised(torch.float32) - layer.weight).norm() / layer.weight.norm()).item() < most


def test_outputs_and_gradients_are_those_of_the_weights_it_stands_for(kind: Quantisation):
    _, small = layer_of(kind)
    plain = nn.Linear(192, 256)
    plain.weight.data, plain.bias.data = small.dequantised(torch.float32), small.bias.data
    for autocast in (False, True):
        states, same = (torch.randn(5, 192, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, expected = small(states.requires_grad_()), plain(same.requires_grad_())
        assert found.dtype == expected.dtype
        assert found.equal(expected)
        for result in (found, expected):
            result.float().square().sum().backward()
        assert states.grad is not None
        assert same.grad is not None
        assert states.grad.equal(same.grad)


def test_only_linear_layers_within_are_quantised(kind: Quantisation, tiny_model: Path, make_params: MakeParams):
    params = make_params(lora={"rank": 2, "quantize": kind})
    model = new_reward_model(tiny_model, params)
    small = {name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    # Two layers of q, k, v, o and gate, up, down.
    assert len(small) == 14
    assert all("proj" in name for name in small)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    frozen = load_policy(tiny_model, params, trainable=False)
    assert quantised_in(frozen) is None


def test_answers_are_sampled_as_they_are_learned_from(kind: Quantisation, tiny_model: Path, make_params: MakeParams):
    policy = load_policy(tiny_model, make_params(lora={"rank": 2, "quantize": kind}), trainable=True)
    answers = generate(
        policy,
        load_tokenizer(tiny_model),
        [[5, 6, 7], [8, 9], [3], [4, 4, 4, 4]],
        max_new_tokens=12,
        temperature=1.0,
        seed=3,
        max_concurrent_sequences=2,
    )
    assert sampler_matches_training(policy, answers, 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("workspace", "noted_run")
def test_what_is_saved_is_the_base_as_it_was_and_the_adapters(kind: Quantisation, make_params: MakeParams):
    params = make_params(lora={"rank": 2, "quantize": kind}, dpo={"epochs": 1})
    dpo(params)
    saved, before = (load_file(MODELS / name / "model.safetensors") for name in ("dpo", "sft"))
    assert {name for name, weight in saved.items() if not weight.equal(before[name])} == {
        name for name in before if "proj" in name
    }
    for name, weight in saved.items():
        # Adapters of rank 2 alone moved it: a rounded base would differ in all directions.
        if weight.ndim == 2:
            assert torch.linalg.matrix_rank(weight - before[name], rtol=1e-3) <= 2
    least, most = ERRORS[kind]
    assert least < read_json(Path("metrics/dpo.json"))["merge_error"] < most
    if kind == "nf4":
        content = (MODELS / "dpo/model.safetensors").read_bytes()
        dpo(params)
        assert (MODELS / "dpo/model.safetensors").read_bytes() == content


def test_what_cannot_be_quantised(tiny_model: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"lora: quantize is nf4, but rank is 0, .*: set rank to 1 or more, or"):
        make_params(lora={"quantize": "nf4"})
    with pytest.raises(InputError, match="models of type gpt2 have no linear layers that can be quantised"):
        quantise(GPT2LMHeadModel(FAMILIES["gpt2"]), "nf4", CPU)  # type: ignore[arg-type]
    params = make_params(lora={"rank": 2, "quantize": "nf4"})
    monkeypatch.setattr(processes, "uses_fsdp", lambda: True)
    with pytest.raises(InputError, match=r"lora\.quantize nf4 cannot be sharded: start by python -m"):
        load_policy(tiny_model, params, trainable=True)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"lora\.quantize nf4 needs bitsandbytes: pip install 'trueline\[quantize\]'"):
        load_policy(tiny_model, params, trainable=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_not_quantised_of_a_base_in_bf16(
    precision: Precision, tiny_model: Path, tmp_path: Path, make_params: MakeParams
):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    params = make_params(runtime={"precision": precision}, lora={"rank": 2, "quantize": "nf4"})
    policy = with_adapters(load_policy(folder, params, trainable=True), params.lora)
    found = {name: weight.dtype for name, weight in policy.named_parameters() if weight.dtype != torch.float32}
    head = {} if precision == "fp32" else {"base_model.model.lm_head.weight": torch.bfloat16}
    assert found == head
    assert completion_log_probs(policy, collate(ROWS)).isfinite().all()
