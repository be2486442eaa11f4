"""The two losses of PPO: the clipped policy loss and the clipped value loss.

Both are sums over the masked tokens divided by a token count that the caller gives: the count of the whole minibatch.
So its micro-batches add up to its loss and its gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.learning.ppo.advantages import LARGEST_LOG_RATIO


class PolicyLoss(NamedTuple):
    """The policy's loss and what describes the step; every field adds up over the parts of a minibatch."""

    loss: Tensor
    approx_kl: Tensor  # k3 estimate of KL(old || new), nats a token
    clip_fraction: Tensor  # share of tokens whose ratio was clipped and so have no gradient
    ratio_mean: Tensor
    squared_change: Tensor  # mean of (ratio - 1)^2: with the mean it gives the ratio's variance


class ValueLoss(NamedTuple):
    """The critic's loss and the share of tokens for which the clipped error was the larger one."""

    loss: Tensor
    clip_fraction: Tensor


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    token_count: int,
    clip: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Clipped surrogate objective (Schulman 2017, equation 7), as a loss, with the dual clip of Ye 2020, equation 3.

    max(-A rho, -A clip(rho, 1 - e, 1 + e)), and for A < 0 at most -A c.

    Args:
        log_probs: (B, L) under the policy that learns; carries the gradient.
        old_log_probs: (B, L) under the policy that sampled.
        advantages: (B, L), whitened.
        mask: (B, L) bool; what lies outside may be NaN and gets no gradient.
        token_count: masked tokens of the whole minibatch.
        clip: e, how far the ratio may usefully move from 1.
        dual_clip: c > 1, the bound for tokens with a negative advantage; None is none.
    """
    # Clamped before exp: an infinite ratio times an advantage of 0 is NaN, and spreads to every weight.
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    # The maximum of losses is the pessimistic bound: moving beyond the clip never pays, moving back always does.
    losses = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        bound = -advantages * dual_clip
        # A bad token whose probability rose has an unbounded ratio, which the first clip does not hold.
        is_bounded = (advantages < 0) & (losses > bound)
        losses, is_clipped = torch.where(is_bounded, bound, losses), is_clipped | is_bounded

    def share(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0).sum() / token_count

    loss = share(losses)
    with torch.no_grad():
        # k3 of the sampled tokens: never negative, so it can be compared with a threshold.
        approx_kl = share(ratio - 1.0 - log_ratio)
        return PolicyLoss(loss, approx_kl, share(is_clipped.float()), share(ratio), share((ratio - 1.0).square()))


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
