"""A second implementation of PPO, from the papers' formulas: row by row, token by token, in float64.

It shares no code with the trainer: no batches, no masks, no packing, torch's modules and autograd alone.
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks.learning.models.loading import ValueHead
from tasks.learning.ppo.scoring import PPOModels
from tests.tiny import EOS

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
    cut = penalty_of_a_cut(models, rows, settings)
    for row in rows:
        log_probs, entropies = ([float(x) for x in xs] for xs in tokens_of(models.policy, row, settings.temperature))
        assert models.reference is not None
        references = [float(x) for x in tokens_of(models.reference, row, settings.temperature)[0]]
        values = [float(x) for x in values_of(models, row)]
        score = float(scalar(models.reward, row.prompt + row.completion))
        earned = min(max(score, -settings.score_clip), settings.score_clip)
        if row.completion[-1] != EOS:
            earned -= cut
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


def penalty_of_a_cut(models: PPOModels, rows: list[Row], settings: Any) -> float:
    """In deviations of the clipped scores, times the share of answers that end."""
    scores = [float(scalar(models.reward, row.prompt + row.completion)) for row in rows]
    clipped = [min(max(score, -settings.score_clip), settings.score_clip) for score in scores]
    ended = sum(row.completion[-1] == EOS for row in rows) / len(rows)
    return float(settings.missing_eos_penalty * pstdev(clipped) * ended)


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
