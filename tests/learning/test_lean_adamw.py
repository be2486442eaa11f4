"""AdamW in fewer bytes a weight learns as AdamW does, and repeats."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.dpo import dpo
from tasks.learning import processes
from tasks.learning.models.loading import load_policy
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.lean_adamw import LeanAdamW, stochastically_rounded
from tasks.learning.training.optimisation import adamw
from tasks.settings.choices import OptimiserName
from tasks.settings.fingerprint import Fingerprint
from tests.conftest import MakeParams
from tests.test_sft import read_curve

LEAN = {"precision": "bf16", "weights": "bf16", "optimiser": "adamw_8bit"}


def small(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A network whose first weight is large enough for moments in 8 bits, and whose others are not."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    model[0].weight.data = model[0].weight.to(dtype)
    return model


def take_steps(model: Any, optimiser: torch.optim.Optimizer, count: int, first: int = 0) -> list[float]:
    """Learn a fixed function of random numbers; gives the loss of each step."""
    losses = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        states = torch.randn(32, 64, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=model[0].weight.dtype == torch.bfloat16):
            loss = (model(states)[:, 0].float() - states[:, :4].sum(dim=1)).square().mean()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def last_loss(dtype: torch.dtype, moments: OptimiserName) -> float:
    model = small(dtype)
    return sum(take_steps(model, adamw(model, moments=moments), 150)[-10:]) / 10


def test_in_fp32_it_is_torchs():
    ours, theirs = small(), small()
    lean = LeanAdamW([{"params": list(ours.parameters()), "weight_decay": 0.1}], moments="adamw", epsilon=1e-5)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.0, eps=1e-5, weight_decay=0.1)
    assert take_steps(ours, lean, 20) == pytest.approx(take_steps(theirs, plain, 20), rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "moments"),
    [(torch.float32, "adamw_8bit"), (torch.bfloat16, "adamw"), (torch.bfloat16, "adamw_8bit")],
)
def test_it_learns_as_adamw_does(dtype: torch.dtype, moments: OptimiserName):
    expected, found, start = last_loss(torch.float32, "adamw"), last_loss(dtype, moments), 4.0  # of outputs near 0
    assert expected < start / 20
    # Of what was learned at most 1 % is lost.
    assert found - expected < (start - expected) / 100


def test_moments_in_8_bits_take_two_bytes_a_weight():
    model = small()
    optimiser = adamw(model, moments="adamw_8bit")
    take_steps(model, optimiser, 1)
    large, bias = optimiser.state[model[0].weight], optimiser.state[model[0].bias]
    held = sum(each.nbytes for name, each in large.items() if name != "step")
    assert held / model[0].weight.numel() == 2 * (1 + 4 / 256)  # two codes, and two scales in fp32 for 256
    assert bias["exp_avg"].dtype == torch.float32


def test_rounding_keeps_the_mean():
    # Between 1 and the next number in bf16, 1 + 2^-7, a quarter of the way.
    values = torch.full((100_000,), 1 + 2**-9)
    rounded = stochastically_rounded(values, 0)
    assert rounded.unique().tolist() == [1.0, 1 + 2**-7]
    # The share that goes up has a standard deviation of sqrt(1/4 * 3/4 / 100,000) = 0.0014.
    assert (rounded > 1).float().mean().item() == pytest.approx(0.25, abs=0.006)
    assert stochastically_rounded(-values, 0).equal(-rounded)
    assert stochastically_rounded(values, 0).equal(rounded)
    assert not stochastically_rounded(values, 1).equal(rounded)
    exact = torch.tensor([0.0, 1.0, -3.5, 2.0**-130, 1e38]).bfloat16().float()
    assert stochastically_rounded(exact, 2).float().equal(exact)


def test_updates_smaller_than_the_steps_of_bf16_arrive():
    weight = nn.Parameter(torch.ones(10_000).bfloat16())
    optimiser = LeanAdamW([{"params": [weight], "weight_decay": 0.0}], moments="adamw", epsilon=1e-8)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimiser.param_groups[0]["lr"] = 1e-4  # below 1, bf16 has steps of 2^-8: nearest rounding would stay at 1
        optimiser.step()
    # Adam moves by the rate a step where gradients repeat.
    assert weight.float().mean().item() == pytest.approx(1 - 20 * 1e-4, abs=1e-4)


@pytest.mark.parametrize("moments", ["adamw", "adamw_8bit"])
def test_a_restored_run_goes_on_with_the_same_bytes(
    moments: OptimiserName, make_params: MakeParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    def trained(seed: int) -> tuple[Any, Any, Checkpoints]:
        model = small(torch.bfloat16, seed)
        optimiser = adamw(model, moments=moments)
        found = {"model": model}, {"model": optimiser}
        return model, optimiser, Checkpoints("sft", Fingerprint({}, {}), make_params().runtime, *found)

    first, optimiser, checkpoints = trained(0)
    take_steps(first, optimiser, 2)
    checkpoints.save(Progress(2))
    again, other, restored = trained(1)
    assert restored.restore().step == 2
    losses = [take_steps(model, each, 3, first=2) for model, each in ((first, optimiser), (again, other))]
    assert losses[0] == losses[1]
    weights: list[list[Tensor]] = [list(model.parameters()) for model in (first, again)]
    assert all(one.equal(two) for one, two in zip(*weights, strict=True))
    states = [
        [each.state[weight] for weight in group["params"]]
        for each in (optimiser, other)
        for group in each.param_groups[:1]
    ]
    for one, two in zip(*states, strict=True):
        assert set(one) == set(two)
        assert all(one[name].equal(two[name]) for name in one)


def test_what_does_not_go_together(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="runtime: weights in bf16 are not computed with in fp32: set precision to"):
        make_params(runtime={"weights": "bf16"})
    with pytest.raises(InputError, match=r"runtime\.weights is bf16, but lora\.rank 2 trains adapters"):
        make_params(runtime={"weights": "bf16", "precision": "bf16"}, lora={"rank": 2})
    monkeypatch.setattr(processes, "uses_fsdp", lambda: True)
    with pytest.raises(InputError, match=r"are not sharded: set runtime\.weights to fp32"):
        adamw(small(), moments="adamw_8bit")
    with pytest.raises(InputError, match=r"are not sharded: set runtime\.weights to fp32"):
        adamw(small(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.usefixtures("workspace", "noted_run")
def test_a_trainer_learns_so_and_repeats(make_params: MakeParams):
    params = make_params(runtime=LEAN, dpo={"epochs": 1, "learning_rate": 3e-3})
    policy = load_policy(MODELS / "sft", params, trainable=True)
    # All linear layers, the head among them, and neither embeddings nor norms.
    assert {name for name, weight in policy.named_parameters() if weight.dtype == torch.bfloat16} == {
        name for name, _ in policy.named_parameters() if "proj" in name or "lm_head" in name
    }
    dpo(params)
    curve = [row["loss"] for row in read_curve("dpo")]
    assert curve[0] == pytest.approx(math.log(2), abs=1e-6)  # policy and reference round alike
    saved, before = (load_file(MODELS / name / "model.safetensors") for name in ("dpo", "sft"))
    assert not any(saved[name].equal(before[name]) for name in before if "embed" not in name)
    assert {weight.dtype for weight in saved.values()} == {torch.float32}  # as in the base
    content = (MODELS / "dpo/model.safetensors").read_bytes()
    dpo(params)
    assert (MODELS / "dpo/model.safetensors").read_bytes() == content
