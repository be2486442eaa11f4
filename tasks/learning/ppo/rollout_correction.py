"""Where sampler and trainer give an answer different probabilities: how far apart they are, and weights against it.

Another precision, other kernels or another program sample from a policy mu that is not quite the trainer's pi, so that
learning is off-policy without knowing it. The weights are ratios of importance sampling, pi / mu, bounded.

Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; masks: IcePop (Ring
team 2025).
"""

import torch
from torch import Tensor

from tasks.common.errors import InputError
from tasks.learning.ppo.advantages import LARGEST_LOG_RATIO, masked_mean
from tasks.settings.choices import RolloutCorrection

FAR = 2.0  # a ratio of this, or its inverse, is counted as far from 1


def correction_weights(log_ratios: Tensor, mask: Tensor, kind: RolloutCorrection, cap: float) -> Tensor:
    """Give the weights of tokens in the policy's loss, without gradient.

    - none: 1.
    - token: the ratio of the token, at most `cap` (truncated importance sampling).
    - sequence: the ratio of the whole answer, the product over its tokens, at most `cap`.
    - mask: the ratio of the token, or 0 where it lies outside [1 / cap, cap].

    Args:
        log_ratios: (B, L), log pi - log mu of sampled tokens.
        mask: (B, L) bool, the answers' tokens.
        kind: which of the four.
        cap: the largest weight, above 1.

    Returns:
        (B, L), 0 outside the mask but for kind none.
    """
    if kind == "none":
        return torch.ones_like(log_ratios)
    log_ratios = torch.where(mask, log_ratios, 0.0)
    if kind == "sequence":
        log_ratios = log_ratios.sum(dim=1, keepdim=True)
    ratios = log_ratios.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    counts = mask & (ratios >= 1 / cap) & (ratios <= cap) if kind == "mask" else mask
    return torch.where(counts, ratios.clamp(max=cap), 0.0)


def mismatch(log_ratios: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Say how far the sampler is from the trainer: metrics of an iteration, means over tokens.

    `rollout_kl` is the k3 estimate of KL(mu || pi) in nats a token, r - 1 - log r with r = pi / mu (Schulman 2020):
    never negative, so it can be compared with a limit. `rollout_ratio_outside` counts tokens with r outside [.5, 2].
    """
    log_ratios = torch.where(mask, log_ratios, 0.0).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratios = log_ratios.exp()
    return {
        "rollout_kl": masked_mean(ratios - 1.0 - log_ratios, mask),
        "rollout_ratio_mean": masked_mean(ratios, mask),
        "rollout_ratio_outside": masked_mean(((ratios > FAR) | (ratios < 1 / FAR)).float(), mask),
    }


def check_mismatch(rollout_kl: float, limit: float | None, iteration: int, last_checkpoint: str) -> None:
    """Stop where the sampler is too far from the trainer.

    Raises:
        InputError: with the figure, the limit, the checkpoint and the cures.
    """
    if limit is not None and not rollout_kl <= limit:
        raise InputError(
            f"training stopped at iteration {iteration}: the sampler is {rollout_kl:.3g} nats a token from the policy "
            f"that learns (KL), more than ppo.max_rollout_kl of {limit:g}; {last_checkpoint}; sample by ppo.engine "
            "builtin or in runtime.precision fp32, or raise the limit in params.yaml"
        )
