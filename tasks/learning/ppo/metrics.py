"""PPO's metrics: names of the curve's columns, the figures of an iteration before its update, and the summary."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tasks.learning.ppo.advantages import explained_variance, masked_mean
from tasks.learning.ppo.rewards import curve_name, is_of_a_reward
from tasks.learning.ppo.rollout_correction import mismatch
from tasks.learning.ppo.scoring import Rollouts
from tasks.learning.training.checkpoints import CurveRow

# The curve's columns in their order, and their names in MLflow, in the groups that PPO's users know.
MLFLOW_NAMES = {
    "reward": "objective/reward",
    "rlhf_reward": "objective/rlhf_reward",
    "kl": "objective/kl",
    "kl_per_token": "objective/kl_per_token",
    "score_std": "objective/score_std",
    "uniform_prompts": "objective/uniform_prompts",
    "prompts_sampled": "objective/prompts_sampled",
    "eos_rate": "response/eos_rate",
    "response_length": "response/length",
    "entropy": "policy/entropy",
    "approx_kl": "policy/approx_kl",
    "clip_fraction": "policy/clip_fraction",
    "ratio_mean": "policy/ratio_mean",
    "ratio_var": "policy/ratio_var",
    "policy_loss": "policy/loss",
    "value_loss": "value/loss",
    "value_clip_fraction": "value/clip_fraction",
    "explained_variance": "value/explained_variance",
    "grad_norm_policy": "policy/grad_norm",
    "grad_norm_critic": "value/grad_norm",
    "rollout_kl": "rollout/kl",
    "rollout_ratio_mean": "rollout/ratio_mean",
    "rollout_ratio_outside": "rollout/ratio_outside",
    "kl_coefficient": "objective/kl_coefficient",
    "missing_eos_penalty": "objective/missing_eos_penalty",
    "learning_rate": "policy/learning_rate",
}
SUMMARISED = (
    "reward",
    "rlhf_reward",
    "kl",
    "entropy",
    "response_length",
    "eos_rate",
    "approx_kl",
    "clip_fraction",
    "explained_variance",
    "uniform_prompts",
    "prompts_sampled",
    "rollout_kl",
)


def objective(rollouts: Rollouts, kl_coefficient: float, *, has_critic: bool) -> dict[str, float]:
    """Metrics of an iteration before the update: scores, KL, responses, and how well the critic predicted the returns.

    The KL is the k1 estimate whichever estimator is in the reward, so that curves can be compared; it may be a little
    below 0 by chance.
    """
    mask, log_ratios = rollouts.mask, rollouts.log_probs - rollouts.reference_log_probs
    kl = log_ratios.sum(dim=1)
    metrics = {
        "reward": rollouts.scores.mean(),
        "rlhf_reward": (rollouts.scores - kl_coefficient * kl).mean(),
        "kl": kl.mean(),
        "kl_per_token": masked_mean(log_ratios, mask),
        "score_std": rollouts.scores.std(correction=0),
        "eos_rate": rollouts.has_ended.float().mean(),
        "response_length": mask.sum(dim=1).float().mean(),
        "entropy": masked_mean(rollouts.entropies, mask),
    }
    metrics |= {curve_name(name): scores.mean() for name, scores in rollouts.by_reward.items()}
    if rollouts.sampled_log_probs is not None:
        metrics |= mismatch(rollouts.log_probs - rollouts.sampled_log_probs, mask)
    if has_critic:
        metrics["explained_variance"] = explained_variance(rollouts.returns, rollouts.values, mask)
    return {**{name: value.item() for name, value in metrics.items()}, "kl_coefficient": kl_coefficient}


def summary(rows: Sequence[CurveRow], rollouts: int) -> dict[str, Any]:
    """Condense the curve: means over its first and its last tenth, and what was used."""
    tenth = max(1, len(rows) // 10)

    def means(part: Sequence[CurveRow]) -> dict[str, float]:
        names = [*SUMMARISED, *(name for name in rows[0] if is_of_a_reward(name))]
        return {name: fmean(row[name] for row in part) for name in names if name in rows[0]}

    return {
        "first": means(rows[:tenth]),
        "last": means(rows[-tenth:]),
        "iterations": len(rows),
        "episodes": len(rows) * rollouts,
        "tokens": round(sum(row["response_length"] for row in rows) * rollouts),
    }
