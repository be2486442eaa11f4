"""From scores and log-probabilities to advantages: KL estimators, shaped rewards, GAE, whitening, KL control.

Every tensor of a response's tokens is (B, L): B responses, L columns, with a mask (B, L) that is True on one
contiguous run of columns a row, the response's tokens. What lies outside the mask is never read (it may be NaN)
and comes out as 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.settings.choices import KLEstimator

# exp of a larger difference says nothing that training could use, and overflows.
LARGEST_LOG_RATIO = 20.0


class Advantages(NamedTuple):
    """What the policy learns from, and what the critic learns; both (B, L)."""

    advantages: Tensor
    returns: Tensor


def kl_estimates(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) token by token, on tokens the policy sampled.

    With d = log pi - log pi_ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman 2020). As a part of the reward
    k1 gives the exact gradient of the KL divergence; k2 and k3 there are biased, with less variance.

    Args:
        log_probs: (B, L) of the sampled tokens under the policy.
        reference_log_probs: (B, L) of the same tokens under the reference.
        mask: (B, L) bool.
        estimator: which of the three.

    Returns:
        (B, L) nats, 0 outside the mask.
    """
    # Multiplying by the mask would keep a NaN of the padding: NaN * 0 is NaN.
    difference = torch.where(mask, log_probs - reference_log_probs, 0.0)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    # k3 grows like exp(-d): one token that the policy made very unlikely would outweigh all others.
    bounded = difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    # expm1, since exp(-d) - 1 loses all digits where policy and reference nearly agree, as they do at the start.
    return torch.expm1(-bounded) + bounded


def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Give every token its KL penalty, and the last one the score as well (Ziegler 2019, equation 2).

    Args:
        scores: (B,) of whole responses.
        kl: (B, L) nats.
        mask: (B, L) bool with at least one True a row.
        kl_coefficient: the beta of the papers.

    Returns:
        (B, L) rewards that sum to score - beta * KL in each row.
    """
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    # The reward is known for the whole answer only; the estimator has to find out which tokens earned it.
    return rewards + torch.where(_last_token(mask), scores[:, None], 0.0)


def smoothed_rewards(rewards: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Smooth a sparse reward over a response: s_0 = a r_0, s_t = s_(t-1) + a (r_t - s_(t-1)); a = 1 changes nothing.

    Args:
        rewards: (B, L).
        mask: (B, L) bool.
        alpha: the share of the new reward, above 0 and at most 1.

    Returns:
        (B, L).
    """
    smoothed = torch.zeros_like(rewards)
    # Each row begins anew: the state is reset on every column outside of its answer.
    state = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1]):
        state = torch.where(mask[:, t], state + alpha * (rewards[:, t] - state), 0.0)
        smoothed[:, t] = state
    return smoothed


def estimate_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> Advantages:
    """Generalised advantage estimation (Schulman 2016, equations 11 and 16) by the backward recursion.

    delta_t = r_t + gamma V_(t+1) - V_t and A_t = delta_t + gamma lambda A_(t+1). The value after the last token is 0,
    also where the response was truncated. The returns A_t + V_t are taken before any whitening.

    Args:
        rewards: (B, L) of each token.
        values: (B, L), the critic's V(prompt, tokens before t) at the column of token t.
        mask: (B, L) bool.
        gamma: discount.
        gae_lambda: 0 trusts the critic alone, 1 the observed rewards alone.

    Returns:
        Advantages and returns, 0 outside the mask.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    # No value is bootstrapped behind a cut answer: missing_eos_penalty says what a cut is worth.
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * gae_lambda * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    # The critic learns what was earned; whitened returns would change its target with every batch.
    return Advantages(advantages, advantages + values)


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Sum up what each token earned and what came after it, discounted: REINFORCE without critic (Williams 1992).

    Args:
        rewards: (B, L) of each token.
        mask: (B, L) bool.
        gamma: discount.

    Returns:
        (B, L), 0 outside the mask.
    """
    # With V = 0 and lambda = 1 the recursion of GAE is this sum: one loop serves both.
    return estimate_advantages(rewards, torch.zeros_like(rewards), mask, gamma, gae_lambda=1.0).advantages


def leave_one_out(rewards: Tensor, responses: int) -> Tensor:
    """Measure each response by the mean of the others to its prompt: RLOO (Ahmadian et al. 2024, section 3).

    Args:
        rewards: (B,) of whole responses; those to one prompt are neighbours.
        responses: to each prompt, at least 2.

    Returns:
        (B,); it sums to 0 over each prompt.
    """
    groups = rewards.view(-1, responses)
    # An answer in its own baseline would bias the gradient towards 0 by 1 / responses.
    others = (groups.sum(dim=1, keepdim=True) - groups) / (responses - 1)
    return (groups - others).flatten()


def standardised_in_groups(rewards: Tensor, responses: int) -> Tensor:
    """Measure each response by mean and deviation of those to its prompt: GRPO (Shao et al. 2024, section 4.1.2).

    Args:
        rewards: (B,) of whole responses; those to one prompt are neighbours.
        responses: to each prompt, at least 2.

    Returns:
        (B,); 0 where all responses to a prompt earn the same. The deviation is the sample's (divided by n - 1).
    """
    groups = rewards.view(-1, responses)
    # 1e-4 keeps a group of equal rewards at 0. Rewards that differ by less than about 1e-3 are damped by it.
    return ((groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)).flatten()


def centred_in_groups(rewards: Tensor, responses: int) -> Tensor:
    """Measure each response by the mean of those to its prompt: Dr. GRPO (Liu et al. 2025, section 3.2).

    REINFORCE++ with a baseline whitens the result over the batch (Hu 2025).

    Args:
        rewards: (B,) of whole responses; those to one prompt are neighbours.
        responses: to each prompt, at least 2.

    Returns:
        (B,); it sums to 0 over each prompt.
    """
    groups = rewards.view(-1, responses)
    return (groups - groups.mean(dim=1, keepdim=True)).flatten()


def overlong_penalties(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """Soft length penalty: 0 up to `longest - buffer` tokens, then linear down to -1 (Yu et al. 2025, equation 13).

    Args:
        lengths: (B,) tokens of each answer, at most `longest`.
        longest: that an answer can be, in tokens.
        buffer: tokens over which the penalty grows.

    Returns:
        (B,) between -1 and 0.
    """
    return -((lengths - (longest - buffer)) / buffer).clamp(min=0.0)


def whiten(values: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
    """Scale to unit variance over all masked entries, and shift the mean to 0 unless `keep_mean`.

    Args:
        values: (B, L) of the whole batch: a minibatch would have a mean and a variance of its own.
        mask: (B, L) bool.
        keep_mean: divide only, as is right for rewards: moving them would pay for length.

    Returns:
        (B, L), 0 outside the mask. Variance is that of the population (divided by n).
    """
    # Over the whole iteration, so that the gradient does not depend on how it is split into minibatches.
    mean = masked_mean(values, mask)
    scale = torch.rsqrt(masked_mean((values - mean).square(), mask) + 1e-8)
    return torch.where(mask, values * scale if keep_mean else (values - mean) * scale, 0.0)


def adapted_kl_coefficient(coefficient: float, kl: float, target: float, horizon: int, responses: int) -> float:
    """Steer the KL coefficient towards a KL per response (Ziegler 2019, section 2.2).

    Args:
        coefficient: beta up to now.
        kl: mean over responses of the sum over tokens, in nats.
        target: what that should be.
        horizon: responses over which an excess of 20 % or more raises beta by a fifth.
        responses: how many `kl` was measured on.

    Returns:
        The next beta.
    """
    # Bounded, since the KL of a few answers is noisy and one outlier would swing the coefficient.
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * responses / horizon)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """How much of the returns the critic predicts: 1 - Var(R - V) / Var(R); 1 is all, 0 no more than their mean.

    Args:
        returns: (B, L).
        values: (B, L).
        mask: (B, L) bool.

    Returns:
        A scalar; 0 where the returns do not vary.
    """
    # Not the squared error alone: a critic that gives the mean return has a small error and explains nothing.
    total = _variance(returns, mask)
    return torch.where(total > 0, 1.0 - _variance(returns - values, mask) / total, 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average the masked entries; what lies outside may be NaN. `values` and `mask` are of one shape."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def _last_token(mask: Tensor) -> Tensor:
    """True on the last masked column of each row, (B, L) bool."""
    after = torch.zeros_like(mask)
    after[:, :-1] = mask[:, 1:]
    return mask & ~after
