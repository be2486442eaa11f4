"""Losses: numbers worked by hand, and parts that add up."""

import math
from typing import get_args

import pytest
import torch

from tasks.learning.dpo.preference_losses import implicit_rewards, preference_loss
from tasks.learning.maths.losses import sft_loss
from tasks.learning.maths.pairs import PairValues, reward_loss
from tasks.settings.choices import PreferenceLoss

LOSSES: tuple[PreferenceLoss, ...] = get_args(PreferenceLoss)


def pair(chosen: list[float], rejected: list[float]) -> PairValues:
    return PairValues(torch.tensor(chosen), torch.tensor(rejected))


def loss_at(margin: float, loss: PreferenceLoss, *, beta: float = 0.5, smoothing: float = 0.0, gamma: float = 0.0):
    margins = torch.tensor([margin], dtype=torch.float64)
    found = preference_loss(margins, None, 1, loss, beta=beta, label_smoothing=smoothing, simpo_gamma=gamma)
    return found.item()


def test_sft_loss_is_the_mean_over_the_tokens_it_is_given():
    log_probs = torch.tensor([[0.0, -1.0, -2.0], [0.0, 0.0, -3.0]])
    mask = torch.tensor([[False, True, True], [False, False, True]])
    # (1 + 2 + 3) / 3 tokens = 2; given that the step holds 6 tokens, this is half of it: 1
    assert sft_loss(log_probs, mask, 3).item() == 2.0
    assert sft_loss(log_probs, mask, 6).item() == 1.0


def test_sft_loss_does_not_look_outside_the_completion():
    log_probs = torch.tensor([[math.nan, -1.0, math.inf]], requires_grad=True)
    mask = torch.tensor([[False, True, False]])
    loss = sft_loss(log_probs, mask, 1)
    loss.backward()
    assert loss.item() == 1.0
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.0, -1.0, 0.0]]


def test_reward_loss_of_equal_scores_is_log_two():
    assert reward_loss(pair([3.0], [3.0]), 1).item() == pytest.approx(math.log(2), abs=1e-6)


def test_reward_loss_by_hand():
    # d = 2 - 1 = 1: log(1 + e^-1) = 0.313262
    assert reward_loss(pair([2.0], [1.0]), 1).item() == pytest.approx(0.313262, abs=1e-6)
    # margin 1 takes the lead away: log 2 = 0.693147
    assert reward_loss(pair([2.0], [1.0]), 1, margin=1.0).item() == pytest.approx(0.693147, abs=1e-6)
    # centering 0.01 adds 0.01 (2 + 1)^2 = 0.09
    assert reward_loss(pair([2.0], [1.0]), 1, centering=0.01).item() == pytest.approx(0.403262, abs=1e-6)
    # smoothing 0.1: 0.9 * 0.313262 + 0.1 * log(1 + e) = 0.281936 + 0.131326 = 0.413262
    assert reward_loss(pair([2.0], [1.0]), 1, label_smoothing=0.1).item() == pytest.approx(0.413262, abs=1e-6)


def test_implicit_rewards_by_hand():
    policy, reference, lengths = pair([-4.0], [-9.0]), pair([-6.0], [-8.0]), pair([2.0], [4.0])
    # beta 0.5: chosen 0.5 (-4 + 6) = 1, rejected 0.5 (-9 + 8) = -0.5, margin 1.5
    summed = implicit_rewards(policy, reference, lengths, "sigmoid", 0.5)
    assert [value.item() for value in (*summed, summed.margins)] == [1.0, -0.5, 1.5]
    # by token: 1 / 2 = 0.5 and -0.5 / 4 = -0.125
    for loss in ("ipo", "sigmoid_norm"):
        assert [value.item() for value in implicit_rewards(policy, reference, lengths, loss, 0.5)] == [0.5, -0.125]
    # by token, without reference: 0.5 * -4 / 2 = -1 and 0.5 * -9 / 4 = -1.125
    assert [value.item() for value in implicit_rewards(policy, reference, lengths, "simpo", 0.5)] == [-1.0, -1.125]


def test_preference_losses_by_hand():
    # log(1 + e^-1.5) = 0.201413; log(1 + e^1.5) = 1.701413
    assert loss_at(1.5, "sigmoid") == pytest.approx(0.201413, abs=1e-6)
    assert loss_at(1.5, "sigmoid_norm") == pytest.approx(0.201413, abs=1e-6)
    # conservative: 0.9 * 0.201413 + 0.1 * 1.701413 = 0.351413
    assert loss_at(1.5, "sigmoid", smoothing=0.1) == pytest.approx(0.351413, abs=1e-6)
    # robust: (0.9 * 0.201413 - 0.1 * 1.701413) / 0.8 = 0.011131 / 0.8 = 0.013913
    assert loss_at(1.5, "robust", smoothing=0.1) == pytest.approx(0.013913, abs=1e-6)
    assert loss_at(0.25, "hinge") == 0.75
    assert loss_at(1.5, "hinge") == 0.0
    # (1.5 / 0.5 - 1 / (2 * 0.5))^2 = (3 - 1)^2 = 4
    assert loss_at(1.5, "ipo") == 4.0
    # log(1 + e^-(1.5 - 0.5)) = 0.313262
    assert loss_at(1.5, "simpo", gamma=0.5) == pytest.approx(0.313262, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_larger_margin_never_costs_more_below_the_target(loss: PreferenceLoss):
    # the ipo target is margin = 1/2 whatever beta is
    assert loss_at(0.4, loss) < loss_at(0.0, loss) < loss_at(-1.0, loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_step_add_up(loss: PreferenceLoss):
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(6, generator=generator, dtype=torch.float64)
    scores = PairValues(*torch.randn(2, 6, generator=generator, dtype=torch.float64))

    def preference(rows: slice) -> float:
        terms = {"beta": 0.1, "label_smoothing": 0.0, "simpo_gamma": 0.5}
        return preference_loss(margins[rows], None, 6, loss, **terms).item()

    def reward(rows: slice) -> float:
        part = PairValues(scores.chosen[rows], scores.rejected[rows])
        return reward_loss(part, 6, margin=0.1, centering=0.01, label_smoothing=0.1).item()

    for whole in (preference, reward):
        assert whole(slice(0, 1)) + whole(slice(1, 6)) == pytest.approx(whole(slice(0, 6)), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_count_as_much_as_they_weigh(loss: PreferenceLoss):
    margins, weights = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1 / 3, 1 / 3, 1.0])
    terms = {"beta": 0.5, "label_smoothing": 0.0, "simpo_gamma": 0.0}
    one, two, three = (preference_loss(margins[[each]], None, 1, loss, **terms) for each in range(3))
    weighted = preference_loss(margins, weights, float(weights.sum()), loss, **terms)
    # (1/3 a + 1/3 b + c) / (5/3) = (a + b + 3 c) / 5
    assert weighted.item() == pytest.approx((one + two + 3 * three).item() / 5, abs=1e-6)


def test_a_stronger_preference_asks_for_a_larger_margin_and_pairs_weigh():
    # d = 2 - 1 - (0, 1): log(1 + e^-1) = 0.313262 and log 2 = 0.693147; weights 1 and 1/2 over 3/2:
    # (0.313262 + 0.346574) / 1.5 = 0.439890
    scores, margins, weights = pair([2.0, 2.0], [1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])
    found = reward_loss(scores, 1.5, margin=margins, weights=weights)
    assert found.item() == pytest.approx(0.439890, abs=1e-6)
