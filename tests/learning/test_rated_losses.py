"""The losses of rated answers: numbers worked by hand, and parts that add up."""

import math
from typing import get_args

import pytest
import torch

from tasks.learning.kto.rated_losses import rated_loss, reference_point
from tasks.settings.choices import RatedLoss

LOSSES: tuple[RatedLoss, ...] = get_args(RatedLoss)


def loss_of(ratios: list[float], good: list[bool], loss: RatedLoss, point: float = 0.0, count: int = 1, **settings):
    chosen = {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0} | settings
    tensor = torch.tensor(ratios, dtype=torch.float64, requires_grad=True)
    found = rated_loss(tensor, torch.tensor(good), torch.tensor(point, dtype=torch.float64), count, loss, **chosen)
    found.backward()
    assert tensor.grad is not None
    return found.item(), tensor.grad.tolist()


def test_kto_by_hand():
    # good: 1 - sigmoid(0.5 (3 - 1)) = 1 - sigmoid(1) = 0.268941
    assert loss_of([3.0], [True], "kto", 1.0)[0] == pytest.approx(0.268941, abs=1e-6)
    # bad: 1 - sigmoid(0.5 (1 - 3)) = 1 - sigmoid(-1) = 0.731059
    assert loss_of([3.0], [False], "kto", 1.0)[0] == pytest.approx(0.731059, abs=1e-6)
    # weights 2 and 3 of the two, over 2 answers: (2 * 0.268941 + 3 * 0.731059) / 2 = 1.365530
    both = loss_of([3.0, 3.0], [True, False], "kto", 1.0, 2, desirable_weight=2.0, undesirable_weight=3.0)
    assert both[0] == pytest.approx(1.365530, abs=1e-6)


def test_apo_zero_by_hand():
    # good: 1 - sigmoid(0.5 * 2) = 0.268941; bad: sigmoid(0.5 * 2) = 0.731059; the reference point does not matter
    assert loss_of([2.0], [True], "apo_zero", 9.0)[0] == pytest.approx(0.268941, abs=1e-6)
    assert loss_of([2.0], [False], "apo_zero", 9.0)[0] == pytest.approx(0.731059, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_raises_good_answers_and_lowers_bad_ones(loss: RatedLoss):
    _, (good, bad) = loss_of([0.0, 0.0], [True, False], loss, count=2)
    # d/dr of 1 - sigmoid(b r) at 0 is -b / 4 = -0.125, over two answers -0.0625
    assert (good, bad) == (pytest.approx(-0.0625), pytest.approx(0.0625))


@pytest.mark.parametrize("loss", LOSSES)
def test_at_the_reference_it_is_half_the_weights(loss: RatedLoss):
    found, _ = loss_of([0.0] * 4, [True, True, True, False], loss, 0.0, 4, undesirable_weight=3.0)
    assert found == pytest.approx((3 * 1.0 + 3.0) / 2 / 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_step_add_up(loss: RatedLoss):
    ratios, good = [0.3, -1.2, 2.5, -0.1, 0.7], [True, False, True, True, False]
    whole, gradient = loss_of(ratios, good, loss, 0.4, 5)
    parts = [loss_of(ratios[a:b], good[a:b], loss, 0.4, 5) for a, b in ((0, 2), (2, 5))]
    assert sum(part for part, _ in parts) == pytest.approx(whole, abs=1e-12)
    assert [each for _, of_part in parts for each in of_part] == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_ratios_stay_finite(loss: RatedLoss):
    found, gradient = loss_of([1e4, -1e4], [True, False], loss, count=2)
    assert (found, gradient) == (0.0, [0.0, 0.0])
    found, gradient = loss_of([-1e4, 1e4], [True, False], loss, count=2)
    assert found == 1.0
    assert all(math.isfinite(each) for each in gradient)


def test_the_reference_point_is_a_mean_never_below_zero_and_without_gradient():
    total = torch.tensor(6.0, requires_grad=True)
    point = reference_point(total, 4)
    assert point.item() == 1.5
    assert not point.requires_grad
    assert reference_point(torch.tensor(-6.0), 4).item() == 0.0
