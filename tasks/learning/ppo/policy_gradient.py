"""The losses of PPO: the policy's by its name and aggregation, and the clipped value loss.

All are sums over the masked tokens divided by counts that the caller gives: those of the whole minibatch. So its
micro-batches, and those of all processes, add up to its loss and its gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.learning.ppo.advantages import LARGEST_LOG_RATIO
from tasks.settings.choices import Aggregation, PolicyLossName


class Counts(NamedTuple):
    """What the policy's loss is divided by, over all micro-batches and processes of a minibatch."""

    tokens: int  # masked tokens
    answers: int
    max_new_tokens: int  # the longest that an answer could be


class PolicyLoss(NamedTuple):
    """The policy's loss and what describes the step; every field adds up over the parts of a minibatch."""

    loss: Tensor
    approx_kl: Tensor  # k3 estimate of KL(old || new), nats a token
    clip_fraction: Tensor  # share of tokens whose ratio was clipped; but for cispo they have no gradient
    ratio_mean: Tensor  # of the ratio in the loss: of tokens, or of answers (gspo)
    squared_change: Tensor  # mean of (ratio - 1)^2: with the mean it gives the ratio's variance


class ValueLoss(NamedTuple):
    """The critic's loss and the share of tokens for which the clipped error was the larger one."""

    loss: Tensor
    clip_fraction: Tensor


def aggregated(values: Tensor, mask: Tensor, aggregation: Aggregation, counts: Counts) -> Tensor:
    """Reduce the values of tokens to a scalar, of which the parts of a minibatch add up.

    - token: the mean over all tokens, so that a long answer counts more (DAPO: Yu et al. 2025, equation 8).
    - sequence: the mean over answers of the mean over their tokens (GRPO: Shao et al. 2024, equation 3).
    - constant: the sum over tokens / (answers * max_new_tokens): no token counts less for its answer's length
      (Dr. GRPO: Liu et al. 2025, section 3.2).

    Args:
        values: (B, L); what lies outside the mask may be NaN.
        mask: (B, L) bool with at least one True a row.
        aggregation: which of the three.
        counts: of the whole minibatch.
    """
    values = torch.where(mask, values, 0.0)
    match aggregation:
        case "token":
            return values.sum() / counts.tokens
        case "sequence":
            return (values.sum(dim=1) / mask.sum(dim=1)).sum() / counts.answers
        case "constant":
            return values.sum() / (counts.answers * counts.max_new_tokens)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    counts: Counts,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    kind: PolicyLossName = "clip",
    aggregation: Aggregation = "token",
) -> PolicyLoss:
    """Compute the policy's loss, whose gradient raises the probability of tokens with a positive advantage.

    - clip: `clipped_surrogate` of each token's ratio rho (PPO).
    - gspo: `clipped_surrogate` of one ratio an answer, s = exp(mean over its tokens of log rho) (Zheng et al. 2025,
      equations 5 and 7). Its advantage is that of the answer.
    - cispo: -sg(clip(rho)) A log pi, sg without gradient: a clipped token keeps its gradient (MiniMax 2025,
      equations 4 and 5).

    Args:
        log_probs: (B, L) under the policy that learns; carries the gradient.
        old_log_probs: (B, L) under the policy that sampled.
        advantages: (B, L).
        mask: (B, L) bool; what lies outside may be NaN and gets no gradient.
        counts: of the whole minibatch.
        clip: how far the ratio may usefully fall below 1.
        clip_high: how far it may rise above 1 (clip-higher: Yu et al. 2025, equation 10); None is as far as `clip`.
        dual_clip: c > 1, the bound for tokens with a negative advantage; None is none.
        kind: which loss.
        aggregation: of the tokens' losses.
    """
    # Clamped before exp: an infinite ratio times an advantage of 0 is NaN, and spreads to every weight.
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = sequence_ratio(log_ratio, mask) if kind == "gspo" else log_ratio.exp()
    low, high = 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high)
    if kind == "cispo":
        losses = -ratio.detach().clamp(low, high) * advantages * torch.where(mask, log_probs, 0.0)
        is_clipped = (ratio < low) | (ratio > high)
    else:
        losses, is_clipped = clipped_surrogate(ratio, advantages, low, high, dual_clip)

    def share(values: Tensor) -> Tensor:
        return aggregated(values, mask, "token", counts)

    loss = aggregated(losses, mask, aggregation, counts)
    with torch.no_grad():
        # k3 of the sampled tokens: never negative, so it can be compared with a threshold.
        approx_kl = share(log_ratio.exp() - 1.0 - log_ratio)
        return PolicyLoss(loss, approx_kl, share(is_clipped.float()), share(ratio), share((ratio - 1.0).square()))


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate objective (Schulman 2017, equation 7), as a loss, with the dual clip of Ye 2020, equation 3.

    max(-A rho, -A clip(rho, low, high)), and for A < 0 at most -A c.

    Args:
        ratio: (B, L), rho; carries the gradient.
        advantages: (B, L).
        low: below 1.
        high: above 1.
        dual_clip: c > 1; None is no bound.

    Returns:
        Losses (B, L), and whether they were clipped and have no gradient, (B, L) bool.
    """
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(low, high)
    # The maximum of losses is the pessimistic bound: moving beyond the clip never pays, moving back always does.
    losses = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        bound = -advantages * dual_clip
        # A bad token whose probability rose has an unbounded ratio, which the first clip does not hold.
        is_bounded = (advantages < 0) & (losses > bound)
        losses, is_clipped = torch.where(is_bounded, bound, losses), is_clipped | is_bounded
    return losses, is_clipped


def sequence_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Geometric mean of an answer's ratios: exp(1/T sum_t log rho_t) (GSPO: Zheng et al. 2025, equation 7).

    Args:
        log_ratio: (B, L), 0 outside the mask.
        mask: (B, L) bool with at least one True a row.

    Returns:
        (B, L), alike in all columns of a row.
    """
    return (log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)).exp().expand_as(log_ratio)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, token_count: int, clip: float
) -> ValueLoss:
    """Clipped squared error of the critic: 0.5 max((V - R)^2, (V_clip - R)^2), V_clip within `clip` of the old value.

    The max makes the clip pessimistic: a value that moved far is not rewarded for it (PPO's reference code; not in
    the paper).

    Args:
        values: (B, L) of the critic that learns; carries the gradient.
        old_values: (B, L) of the critic when the responses were sampled.
        returns: (B, L).
        mask: (B, L) bool; what lies outside may be NaN and gets no gradient.
        token_count: masked tokens of the whole minibatch.
        clip: how far a value may usefully move.
    """
    values, old_values, returns = (torch.where(mask, tensor, 0.0) for tensor in (values, old_values, returns))
    # The critic is held near its old values for the same reason as the policy: its targets were made with them.
    near = old_values + (values - old_values).clamp(-clip, clip)
    plain_error, near_error = (values - returns).square(), (near - returns).square()
    loss = 0.5 * torch.maximum(plain_error, near_error).sum() / token_count
    return ValueLoss(loss, (near_error > plain_error).float().sum() / token_count)
