"""PPO against a second implementation, written here from the papers' formulas: row by row, token by token, in float64.

It shares no code with the trainer: no batches, no masks, no packing, torch's modules and autograd alone. Two optimiser
steps on a tiny model are compared number by number: rollouts, metrics and every weight.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import fmean, pstdev, stdev
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification

from tasks.learning.models.loading import ValueHead
from tasks.learning.ppo.advantages import (
    estimate_advantages,
    leave_one_out,
    rewards_to_go,
    shaped_rewards,
    smoothed_rewards,
    standardised_in_groups,
    whiten,
)
from tasks.learning.ppo.policy_gradient import Counts, policy_loss, value_loss
from tasks.learning.ppo.scoring import PPOModels
from tasks.learning.ppo.trainer import PPOTrainer
from tests.tiny import EOS, tiny_models, tiny_params

PROMPTS = [[4, 3], [4, 3], [5, 6, 3], [5, 6, 3], [8, 9, 10, 3], [8, 9, 10, 3]]
BETA, BIAS, GAIN = 0.07, 0.3, 1.7
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-5
Floats = list[float]


# --- The formulas, of one response or of a list of them


def kl_of_token(log_prob: Any, reference: float, estimator: str) -> Any:
    """Schulman 2020, "Approximating KL divergence"."""
    difference = log_prob - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    exp = torch.exp if isinstance(difference, Tensor) else math.exp
    return exp(-difference) - 1 + difference


def gae(rewards: Floats, values: Floats, gamma: float, lam: float) -> Floats:
    """Schulman 2016, equation 16, as the sum it is: A_t = sum_l (gamma lambda)^l delta_(t+l)."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [
        sum((gamma * lam) ** step * delta for step, delta in enumerate(deltas[start:])) for start in range(len(deltas))
    ]


def discounted(rewards: Floats, gamma: float) -> Floats:
    return [sum(gamma**step * r for step, r in enumerate(rewards[start:])) for start in range(len(rewards))]


def smoothed(rewards: Floats, alpha: float) -> Floats:
    state, found = 0.0, []
    for reward in rewards:
        state = alpha * reward + (1 - alpha) * state
        found.append(state)
    return found


def white(rows: list[Floats], keep_mean: bool = False) -> list[Floats]:
    flat = [value for row in rows for value in row]
    mean, deviation = fmean(flat), math.sqrt(pstdev(flat) ** 2 + 1e-8)
    return [[(value - (0 if keep_mean else mean)) / deviation for value in row] for row in rows]


def compared_with_others(rewards: Floats, group: int) -> Floats:
    """RLOO: minus the mean of the other answers to the prompt."""
    groups = [rewards[start : start + group] for start in range(0, len(rewards), group)]
    return [each[k] - fmean(each[:k] + each[k + 1 :]) for each in groups for k in range(group)]


def standardised(rewards: Floats, group: int) -> Floats:
    """GRPO: by mean and deviation of the prompt's answers."""
    groups = [rewards[start : start + group] for start in range(0, len(rewards), group)]
    return [(r - fmean(each)) / (stdev(each) + 1e-4) for each in groups for r in each]


def centred(rewards: Floats, group: int) -> Floats:
    """Dr. GRPO: by the mean of the prompt's answers alone."""
    groups = [rewards[start : start + group] for start in range(0, len(rewards), group)]
    return [r - fmean(each) for each in groups for r in each]


def soft_penalty(length: int, longest: int, buffer: int) -> float:
    """DAPO, equation 13."""
    return 0.0 if length <= longest - buffer else ((longest - buffer) - length) / buffer


def surrogate(
    ratio: Any, advantage: float, clip: float, dual_clip: float | None, clip_high: float | None = None
) -> Any:
    """The loss of a token: Schulman 2017, equation 7; Ye 2020, equation 3."""
    bounded = min(max(ratio, 1 - clip), 1 + (clip_high or clip))
    objective = min(ratio * advantage, bounded * advantage)
    if dual_clip is not None and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective


def losses_of_answer(
    log_probs: Sequence[Tensor], old: "Rollout", settings: Any
) -> tuple[list[Any], Floats, list[bool]]:
    """Loss, ratio and whether it was clipped of each token: PPO; GSPO, equation 7; CISPO, equation 5."""
    ratios: list[Any] = [torch.exp(new - known) for new, known in zip(log_probs, old.log_probs, strict=True)]
    if settings.policy_loss == "gspo":
        product = math.prod(ratios)
        ratios = [product ** (1 / len(ratios)) for _ in ratios]
    losses, is_clipped = [], []
    for ratio, log_prob, advantage in zip(ratios, log_probs, old.advantages, strict=True):
        if settings.policy_loss == "cispo":
            weight = min(max(ratio.item(), 1 - settings.clip), 1 + (settings.clip_high or settings.clip))
            losses.append(-weight * advantage * log_prob)
            is_clipped.append(weight != ratio.item())
        else:
            loss = surrogate(ratio, advantage, settings.clip, settings.dual_clip, settings.clip_high)
            losses.append(loss)
            is_clipped.append(bool(loss != -ratio * advantage))
    return losses, [ratio.item() for ratio in ratios], is_clipped


def mean_of(rows: list[list[Any]], settings: Any) -> Any:
    """Over tokens (DAPO), over answers of the mean over tokens (GRPO), or by a constant (Dr. GRPO)."""
    if settings.aggregation == "sequence":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    count = sum(map(len, rows)) if settings.aggregation == "token" else len(rows) * settings.max_new_tokens
    return sum(map(sum, rows)) / count


def clipped_error(value: Any, old: float, target: float, clip: float) -> Any:
    near = old + min(max(value - old, -clip), clip)
    return max((value - target) ** 2, (near - target) ** 2) / 2


# --- One iteration by these formulas


class Row(NamedTuple):
    prompt: list[int]
    completion: list[int]


class Rollout(NamedTuple):
    log_probs: Floats
    references: Floats
    entropies: Floats
    values: Floats
    score: float
    advantages: Floats
    returns: Floats


def tokens_of(policy: nn.Module, row: Row, temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probability and entropy of each completion token."""
    ids, begin = row.prompt + row.completion, len(row.prompt)
    logits = policy(torch.tensor([ids])).logits[0] / temperature
    probabilities = [torch.softmax(logits[place - 1], dim=0) for place in range(begin, len(ids))]
    log_probs = [torch.log(p[token]) for p, token in zip(probabilities, row.completion, strict=True)]
    return log_probs, [-(p * torch.log(p)).sum() for p in probabilities]


def scalar(model: Any, ids: Sequence[int]) -> Tensor:
    """The normalised output of a scalar head behind some tokens."""
    last = model.model(torch.tensor([list(ids)])).last_hidden_state[0, -1]
    output: Tensor = (model.score(last)[0] + BIAS) * GAIN
    return output


def values_of(models: Any, row: Row) -> list[Tensor]:
    """The critic's value before each completion token."""
    ids, begin = row.prompt + row.completion, len(row.prompt)
    prefixes = [ids[:place] for place in range(begin, len(ids))]
    if models.critic is None:
        return [torch.zeros(()) for _ in prefixes]
    if isinstance(models.critic, ValueHead):
        states = [models.policy.model(torch.tensor([prefix])).last_hidden_state[0, -1] for prefix in prefixes]
        return [models.critic.weight[0] @ state + models.critic.bias[0] for state in states]
    return [scalar(models.critic, prefix) for prefix in prefixes]


@torch.no_grad()
def rollouts_of(models: PPOModels, rows: list[Row], settings: Any) -> list[Rollout]:
    found, rewards = [], []
    for row in rows:
        log_probs, entropies = ([float(x) for x in xs] for xs in tokens_of(models.policy, row, settings.temperature))
        assert models.reference is not None
        references = [float(x) for x in tokens_of(models.reference, row, settings.temperature)[0]]
        values = [float(x) for x in values_of(models, row)]
        score = float(scalar(models.reward, row.prompt + row.completion))
        earned = min(max(score, -settings.score_clip), settings.score_clip)
        if row.completion[-1] != EOS:
            earned -= settings.missing_eos_penalty
        if settings.overlong_buffer is not None:
            earned += soft_penalty(len(row.completion), settings.max_new_tokens, settings.overlong_buffer)
        penalties = [kl_of_token(p, q, settings.kl_estimator) for p, q in zip(log_probs, references, strict=True)]
        of_tokens = [0.0 if settings.estimator == "grpo" else -BETA * kl for kl in penalties]
        of_tokens[-1] += earned
        rewards.append(smoothed(of_tokens, settings.reward_smoothing))
        found.append(Rollout(log_probs, references, entropies, values, score, [], []))
    if settings.whiten_rewards:
        rewards = white(rewards, keep_mean=True)
    advantages, returns = learned_from(rewards, [each.values for each in found], settings)
    return [each._replace(advantages=a, returns=r) for each, a, r in zip(found, advantages, returns, strict=True)]


def learned_from(rewards: list[Floats], values: list[Floats], settings: Any) -> tuple[list[Floats], list[Floats]]:
    """Advantages and returns of every response."""
    totals, group = [sum(row) for row in rewards], settings.responses_per_prompt
    if settings.estimator == "gae":
        plain = [gae(r, v, settings.gamma, settings.gae_lambda) for r, v in zip(rewards, values, strict=True)]
        returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(plain, values, strict=True)]
        return white(plain), returns
    if settings.estimator == "reinforce_plus_plus":
        returns = [discounted(row, settings.gamma) for row in rewards]
        return white(returns), returns
    if settings.estimator == "rloo":
        of_responses = compared_with_others(totals, group)
    else:
        divides = settings.estimator == "grpo" and settings.grpo_divide_by_std
        of_responses = (standardised if divides else centred)(totals, group)
    returns = [discounted(row, 1.0) for row in rewards]
    spread = [[a] * len(row) for a, row in zip(of_responses, rewards, strict=True)]
    return white(spread) if settings.estimator == "reinforce_plus_plus_baseline" else spread, returns


class Adam:
    """Kingma and Ba 2015, algorithm 1, behind a gradient whose norm is clipped."""

    def __init__(self, model: nn.Module, rate: float, max_norm: float) -> None:
        self._weights, self._rate, self._max_norm, self._steps = list(model.parameters()), rate, max_norm, 0
        self._first = [torch.zeros_like(weight) for weight in self._weights]
        self._second = [torch.zeros_like(weight) for weight in self._weights]

    @torch.no_grad()
    def step(self) -> float:
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self._weights]
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        self._steps += 1
        for place, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            clipped = gradient * min(1.0, self._max_norm / (norm + 1e-6))
            self._first[place] = BETA1 * self._first[place] + (1 - BETA1) * clipped
            self._second[place] = BETA2 * self._second[place] + (1 - BETA2) * clipped**2
            first = self._first[place] / (1 - BETA1**self._steps)
            second = self._second[place] / (1 - BETA2**self._steps)
            weight.sub_(self._rate * first / (second.sqrt() + EPSILON))
            weight.grad = None
        return norm


def updated(models: PPOModels, rows: list[Row], rollouts: list[Rollout], settings: Any) -> list[dict[str, float]]:
    """Take a step on all rollouts in every epoch; gives the metrics of each."""
    policy = Adam(models.policy, settings.learning_rate, settings.max_grad_norm)
    critic = (
        None if models.critic is None else Adam(models.critic, settings.critic_learning_rate, settings.max_grad_norm)
    )
    if settings.overlong == "mask":
        rows, rollouts = map(
            list,
            zip(*(pair for pair in zip(rows, rollouts, strict=True) if pair[0].completion[-1] == EOS), strict=True),
        )
    count = sum(len(row.completion) for row in rows)
    found = []
    for _ in range(settings.epochs):
        policy_losses, bonuses, penalties, value_losses, ratios, kls = [], [], [], [], [], []
        cut = value_cut = 0
        for row, old in zip(rows, rollouts, strict=True):
            log_probs, entropies = tokens_of(models.policy, row, settings.temperature)
            losses, of_answer, is_clipped = losses_of_answer(log_probs, old, settings)
            policy_losses.append(losses)
            ratios += of_answer
            cut += sum(is_clipped)
            bonuses.append(entropies)
            pairs = zip(log_probs, old.log_probs, strict=True)
            kls += [kl_of_token(known, new.item(), "k3") for new, known in pairs]
            pairs = zip(log_probs, old.references, strict=True)
            penalties.append([kl_of_token(new, known, settings.kl_estimator) for new, known in pairs])
            for place, value in enumerate(values_of(models, row)):
                error = clipped_error(value, old.values[place], old.returns[place], settings.value_clip)
                value_cut += bool(error > (value - old.returns[place]) ** 2 / 2)
                value_losses.append(error)
        policy_loss = mean_of(policy_losses, settings)
        loss = policy_loss - settings.entropy_bonus * mean_of(bonuses, settings)
        if settings.estimator == "grpo":
            loss = loss + BETA * mean_of(penalties, settings)
        value = sum(value_losses) / count
        if isinstance(models.critic, ValueHead):
            (loss + settings.value_weight * value).backward()
        else:
            loss.backward()
            if models.critic is not None:
                value.backward()
        metrics = {
            "policy_loss": policy_loss.item(),
            "approx_kl": fmean(kls),
            "ratio_mean": fmean(ratios),
            "clip_fraction": cut / count,
            "grad_norm_policy": policy.step(),
        }
        if critic is not None:
            metrics |= {"value_loss": value.item(), "value_clip_fraction": value_cut / count}
            metrics["grad_norm_critic"] = critic.step()
        found.append(metrics)
    return found


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
    "missing_eos_penalty": 0.4,
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
    ours = trainer.score(responses, BETA)
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
