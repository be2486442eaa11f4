"""Learning rates, one update by hand, and the halt before a NaN."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tasks.common.errors import InputError
from tasks.learning.training.gradients import GradientSums
from tasks.learning.training.optimisation import (
    LossSums,
    adamw,
    check_finite,
    learning_rate,
    make_accelerator,
    update,
)
from tests.conftest import MakeParams

LAST_SAVED = "the last good checkpoint, of step 4, lies in .trueline"


def rates(schedule, steps=4, warmup_ratio=0.0):
    return [learning_rate(step, steps, 1.0, schedule, warmup_ratio) for step in range(1, steps + 1)]


def test_schedules_by_hand():
    assert rates("constant") == [1.0, 1.0, 1.0, 1.0]
    # (steps - (step - 1)) / steps
    assert rates("linear") == [1.0, 0.75, 0.5, 0.25]
    # (1 + cos(pi (step - 1) / 4)) / 2: cos 0 = 1, cos pi/4 = 0.70711, cos pi/2 = 0, cos 3pi/4 = -0.70711
    assert rates("cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_warmup_ratio_rises_to_the_peak_and_no_step_is_wasted():
    # two of five steps rise: 1/2, 1; then three steps fall from 1: 3/3, 2/3, 1/3
    assert rates("linear", steps=5, warmup_ratio=0.4) == pytest.approx([0.5, 1.0, 1.0, 2 / 3, 1 / 3])
    assert rates("constant", steps=4, warmup_ratio=1.0) == [0.25, 0.5, 0.75, 1.0]
    assert min(rates("cosine", steps=100, warmup_ratio=0.1)) > 0


def model_with_gradient(gradient: float) -> nn.Linear:
    model = nn.Linear(2, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    model.weight.grad = torch.tensor([[gradient, 0.0]])
    model.bias.grad = torch.tensor([0.0])
    return model


def step(model: nn.Linear, make_params: MakeParams, loss: float = 1.0, weight_decay: float = 0.0) -> float:
    optimiser = adamw(model, weight_decay=weight_decay, epsilon=1e-8)
    return update(
        make_accelerator(make_params()),
        model,
        optimiser,
        step=5,
        loss=loss,
        learning_rate=0.1,
        max_grad_norm=1.0,
        last_checkpoint=LAST_SAVED,
    )


def test_a_step_that_memory_does_not_suffice_for_is_not_tried_again(
    make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
):
    def step_in_part(_: torch.optim.AdamW) -> None:
        raise MemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", step_in_part)
    with pytest.raises(InputError, match="in optimiser step 5; the last good checkpoint"):
        step(model_with_gradient(1.0), make_params)


def test_an_update_by_hand(make_params: MakeParams):
    model = model_with_gradient(3.0)
    assert step(model, make_params) == 3.0  # the norm before clipping
    # Adam's first step is rate * sign(gradient): 1 - 0.1 = 0.9; no gradient, no move
    assert model.weight.tolist() == [[pytest.approx(0.9, abs=1e-6), 1.0]]
    assert model.weight.grad is None


def test_decay_shrinks_matrices_and_spares_vectors(make_params: MakeParams):
    model = model_with_gradient(0.0)
    nn.init.ones_(model.bias)
    step(model, make_params, weight_decay=0.5)
    # 1 - rate * decay = 1 - 0.1 * 0.5 = 0.95
    assert model.weight.tolist() == [[pytest.approx(0.95), pytest.approx(0.95)]]
    assert model.bias.item() == 1.0


def test_frozen_weights_are_not_optimised():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    assert [len(group["params"]) for group in adamw(model).param_groups] == [1]


@pytest.mark.parametrize(("gradient", "loss"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_nothing_that_is_no_number_reaches_the_weights(make_params: MakeParams, gradient: float, loss: float):
    model = model_with_gradient(gradient)
    with pytest.raises(InputError, match=r"stopped at step 5: the (loss|gradient norm) is (nan|inf); the last good"):
        step(model, make_params, loss)
    assert model.weight.tolist() == [[1.0, 1.0]]


def test_finite_figures_pass_and_the_first_broken_one_is_named():
    check_finite(1, {"loss": 1.0, "gradient norm": 0.0}, LAST_SAVED)
    with pytest.raises(InputError, match=r"step 3: the value loss is nan; .*step 4, lies in .trueline; lower"):
        check_finite(3, {"loss": 1.0, "value loss": math.nan}, LAST_SAVED)


def test_figures_of_a_step_are_read_from_the_device_once(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    weight = nn.Parameter(torch.ones(1))
    sums, reads = LossSums(make_accelerator(make_params()), GradientSums([weight])), list[str]()

    def counted(name: str) -> Callable[[torch.Tensor], object]:
        read = getattr(torch.Tensor, name)

        def count_and_read(tensor: torch.Tensor) -> object:
            reads.append(name)
            return read(tensor)

        return count_and_read

    for name in ("item", "tolist", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    for part, share in ((0.1, 1.0), (0.3, 0.5), (0.7, 0.0)):
        sums.backward({"loss": part * weight.sum(), "rows": torch.tensor(3)}, share, is_last=share == 0)
    assert reads == []
    found = sums.over_ranks()
    assert reads == ["tolist"]
    # fp32's 0.1 and 0.3, as fp64: 0.10000000149 + 0.5 * 0.30000001192; 3 + 1.5 + 0.
    assert found == {"loss": pytest.approx(0.2500000074505806, abs=1e-16), "rows": 4.5}
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(0.25)
