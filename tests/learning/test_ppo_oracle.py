"""PPO against a second implementation (ppo_oracle.py), which shares no code with the trainer.

Optimiser steps on a tiny model are compared number by number: rollouts, metrics and every weight.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForSequenceClassification

from tasks.learning.ppo.advantages import (
    estimate_advantages,
    leave_one_out,
    rewards_to_go,
    shaped_rewards,
    smoothed_rewards,
    standardised_in_groups,
    whiten,
)
from tasks.learning.ppo.missing_eos import missing_eos_penalty
from tasks.learning.ppo.policy_gradient import Counts, policy_loss, value_loss
from tasks.learning.ppo.scoring import PPOModels
from tasks.learning.ppo.trainer import PPOTrainer
from tests.learning.ppo_oracle import (
    BETA,
    BIAS,
    GAIN,
    Floats,
    Row,
    clipped_error,
    compared_with_others,
    discounted,
    gae,
    rollouts_of,
    smoothed,
    standardised,
    surrogate,
    updated,
    white,
)
from tests.tiny import EOS, tiny_models, tiny_params

PROMPTS = [[4, 3], [4, 3], [5, 6, 3], [5, 6, 3], [8, 9, 10, 3], [8, 9, 10, 3]]

GRPO: dict[str, Any] = {"estimator": "grpo", "responses_per_prompt": 2, "kl_estimator": "k3"}
CASES: dict[str, dict[str, Any]] = {
    "gae": {"whiten_rewards": True, "reward_smoothing": 0.6, "gamma": 0.97, "entropy_bonus": 0.02},
    "gae, shared critic": {"critic": "shared", "value_weight": 0.3, "kl_estimator": "k2", "entropy_bonus": 0.02},
    "rloo": {"estimator": "rloo", "responses_per_prompt": 2, "kl_estimator": "k3"},
    "grpo": {"estimator": "grpo", "responses_per_prompt": 2, "kl_estimator": "k3"},
    "reinforce_plus_plus": {"estimator": "reinforce_plus_plus", "gamma": 0.9},
    "grpo as published": GRPO | {"aggregation": "sequence", "entropy_bonus": 0.02, "overlong_buffer": 4},
    "Dr. GRPO": GRPO | {"aggregation": "constant", "grpo_divide_by_std": False, "clip_high": 0.02},
    "gspo": {
        "estimator": "reinforce_plus_plus_baseline",
        "responses_per_prompt": 2,
        "policy_loss": "gspo",
        "aggregation": "sequence",
        "clip": 0.04,
        "clip_high": 0.02,
    },
    "cispo": {
        "estimator": "rloo",
        "responses_per_prompt": 2,
        "policy_loss": "cispo",
        "dual_clip": None,
        "clip_high": 0.1,
    },
    "overlong answers masked": {"overlong": "mask", "missing_eos_penalty": 0.0, "clip_high": 0.02},
}
COMMON: dict[str, Any] = {
    "num_minibatches": 1,
    "epochs": 3,
    "temperature": 0.8,
    "learning_rate": 2e-2,
    "critic_learning_rate": 3e-2,
    "max_grad_norm": 0.7,
    "schedule": "constant",
    "gae_lambda": 0.9,
    "score_clip": 1.0,
    "missing_eos_penalty": 0.9,
    "dual_clip": 1.3,
    "clip": 0.15,
    "value_clip": 0.1,
}


def models_for(settings: Any) -> PPOModels:
    """A reference that is not the policy, a reward model with a scale, a critic that has learned something."""
    models = tiny_models(settings.critic)
    torch.manual_seed(11)
    with torch.no_grad():
        for model in (models.policy, models.critic):
            assert model is not None
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    for model in (models.reward, models.critic):
        if isinstance(model, LlamaForSequenceClassification):
            model.config.score_bias, model.config.score_gain = BIAS, GAIN
    return models if settings.estimator == "gae" else models._replace(critic=None)


def in_float64(models: PPOModels) -> PPOModels:
    copies: list[Any] = [None if model is None else deepcopy(model).double() for model in models[1:]]
    return PPOModels(models.tokenizer, *copies)


@pytest.mark.parametrize("case", CASES)
def test_an_iteration_is_that_of_the_formulas(case: str):
    params = tiny_params(**COMMON | CASES[case])
    settings = params.ppo
    models = models_for(settings)
    oracle = in_float64(models)

    trainer = PPOTrainer(models, params)
    responses = trainer.sample(PROMPTS, seed=2)
    scores = trainer.reward_scores(responses)
    penalty = missing_eos_penalty(settings.missing_eos_penalty, trainer.observe(None, responses, scores))
    ours = trainer.score(responses, BETA, scores, penalty)
    rows = [Row(list(each.row.prompt), list(each.row.completion)) for each in responses]
    theirs = rollouts_of(oracle, rows, settings)
    assert {row.completion[-1] == EOS for row in rows} == {True, False}  # some have ended, some have not
    assert len({len(row.completion) for row in rows}) > 2
    assert ours.scores.tolist() == pytest.approx([each.score for each in theirs], abs=1e-5)
    for name, field in (
        ("log_probs", ours.log_probs),
        ("references", ours.reference_log_probs),
        ("entropies", ours.entropies),
        ("values", ours.values),
        ("advantages", ours.advantages),
        ("returns", ours.returns),
    ):
        flat = [value for each in theirs for value in getattr(each, name)]
        assert field[ours.mask].tolist() == pytest.approx(flat, abs=2e-5), name

    steps = list(trainer.steps(ours, 1, "nothing is saved", BETA))
    expected = updated(oracle, rows, theirs, settings)
    for step, by_formula in zip(steps, expected, strict=True):
        assert {name: step[name] for name in by_formula} == pytest.approx(by_formula, abs=2e-4, rel=2e-4)
    assert expected[-1]["clip_fraction"] > 0  # or clipping would not be compared
    for model, other in ((models.policy, oracle.policy), (models.critic, oracle.critic)):
        for weight, known in zip(*(list(each.parameters()) if each else [] for each in (model, other)), strict=True):
            torch.testing.assert_close(weight.double(), known, atol=2e-4, rtol=0)


# --- The mathematics alone, on many random responses


def padded(rows: list[Floats], starts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows in columns from their starts on, NaN elsewhere; and the mask."""
    width = max(start + len(row) for row, start in zip(rows, starts, strict=True)) + 1
    values, mask = torch.full((len(rows), width), math.nan, dtype=torch.float64), torch.zeros(len(rows), width).bool()
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        values[number, start : start + len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[number, start : start + len(row)] = True
    return values, mask


def rows_of(values: Tensor, mask: Tensor) -> list[Floats]:
    return [row[its].tolist() for row, its in zip(values, mask, strict=True)]


def close(found: list[Floats], expected: list[Floats]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(one == pytest.approx(other, abs=1e-9) for one, other in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_rewards_and_advantages_are_those_of_the_formulas(seed: int):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (8,), generator=draw).tolist()
    starts = torch.randint(0, 4, (8,), generator=draw).tolist()

    def some() -> list[Floats]:
        return [torch.randn(length, generator=draw, dtype=torch.float64).tolist() for length in lengths]

    (kl, rewards, values), scores = (some() for _ in range(3)), torch.randn(8, generator=draw, dtype=torch.float64)
    (kls, mask), (reward, _), (value, _) = (padded(rows, starts) for rows in (kl, rewards, values))

    shaped = [[-0.3 * k for k in row] for row in kl]
    for row, score in zip(shaped, scores.tolist(), strict=True):
        row[-1] += score
    assert close(rows_of(shaped_rewards(scores, kls, mask, 0.3), mask), shaped)
    assert close(rows_of(smoothed_rewards(reward, mask, 0.4), mask), [smoothed(row, 0.4) for row in rewards])
    assert close(rows_of(whiten(reward, mask), mask), white(rewards))
    assert close(rows_of(whiten(reward, mask, keep_mean=True), mask), white(rewards, keep_mean=True))
    assert close(rows_of(rewards_to_go(reward, mask, 0.9), mask), [discounted(row, 0.9) for row in rewards])
    found, expected = (
        estimate_advantages(reward, value, mask, 0.95, 0.8),
        [gae(r, v, 0.95, 0.8) for r, v in zip(rewards, values, strict=True)],
    )
    assert close(rows_of(found.advantages, mask), expected)
    assert leave_one_out(scores, 4).tolist() == pytest.approx(compared_with_others(scores.tolist(), 4), abs=1e-9)
    assert standardised_in_groups(scores, 4).tolist() == pytest.approx(standardised(scores.tolist(), 4), abs=1e-9)


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_losses_and_their_gradients_are_those_of_the_formulas(seed: int, dual_clip: float | None):
    draw = torch.Generator().manual_seed(seed)
    new, old, advantages, values, old_values, returns = (
        torch.randn(3, 9, generator=draw, dtype=torch.float64) for _ in range(6)
    )
    mask = torch.rand(3, 9, generator=draw) < 0.7
    places, count = mask.nonzero().tolist(), int(mask.sum())

    def gradient(loss_of: Callable[[Tensor], Tensor], point: Tensor) -> tuple[float, Tensor]:
        leaf = point.clone().requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        assert leaf.grad is not None
        return loss.item(), leaf.grad

    def policy_by_formula(log_probs: Tensor) -> Tensor:
        terms = [
            surrogate(torch.exp(log_probs[r, c] - old[r, c]), float(advantages[r, c]), 0.2, dual_clip)
            for r, c in places
        ]
        return torch.as_tensor(sum(terms) / count)

    def critic_by_formula(estimates: Tensor) -> Tensor:
        terms = [clipped_error(estimates[r, c], float(old_values[r, c]), float(returns[r, c]), 0.3) for r, c in places]
        return torch.as_tensor(sum(terms) / count)

    ours = gradient(
        lambda it: (
            policy_loss(
                it, old, advantages, mask, counts=Counts(count, len(mask), 9), clip=0.2, dual_clip=dual_clip
            ).loss
        ),
        new,
    )
    theirs = gradient(policy_by_formula, new)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-12, rtol=0)
    ours = gradient(lambda it: value_loss(it, old_values, returns, mask, token_count=count, clip=0.3).loss, values)
    theirs = gradient(critic_by_formula, values)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-12, rtol=0)
