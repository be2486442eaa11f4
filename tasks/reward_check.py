"""Reads metrics/reward.json, writes metrics/reward_check.json.

The check of the reward model before PPO learns from it: a policy finds every weakness of its reward. What is
written does not name the threshold, so that a changed one trains nothing again.
"""

from collections.abc import Mapping
from typing import Any

from tasks.common.errors import InputError
from tasks.common.files import METRICS, read_json, write_json
from tasks.common.rounding import number
from tasks.evaluation.gate.checks import figure, lookup, shared_pairs
from tasks.methods import METHODS
from tasks.settings.params import Params
from tasks.stage import main

REWARD = METRICS / "reward.json"


def reward_check(params: Params) -> None:
    """Stop the pipeline where the policy would learn from a reward model that does not know the pairs.

    The candidate of a method that does not learn from it is left to the gate, which asks the same of the reward model.
    Functions that the policy learns from have scored held-out prompts in reward_functions; they are named in what is
    written.

    Raises:
        InputError: the lower bound of the reward model's held-out accuracy is below the gate's threshold, or missing.
    """
    figures, threshold = read_json(REWARD), params.gate.min_reward_accuracy
    low, method = figure(figures, "accuracy", "low"), METHODS[params.align.method]
    learns_from_rewards = "rewards" in method.learns_from
    learned_from = learns_from_rewards and params.rewards.use_model
    if learned_from and (low is None or low < threshold):
        cure = "give more or cleaner pairs, train it better (reward), or lower the threshold"
        raise InputError(
            f"{method.title} would learn from a reward model that fails its check: {described(figures)}; the "
            f"lower bound of the accuracy must reach {threshold:g} (gate.min_reward_accuracy): {cure}"
        )
    functions = [reward.name for reward in params.rewards.training if learns_from_rewards and not reward.is_model]
    checked = {"learned_from": learned_from} | ({"functions": functions} if functions else {})
    write_json(METRICS / "reward_check.json", checked)


def described(figures: Mapping[str, Any]) -> str:
    """Put the reward model's figures into one line; a missing one is said to be."""
    source = weakest_source(figures)
    of_source = f" (weakest source: {source}, {_accuracy(figures, 'accuracy_by_source', source)})" if source else ""
    return (
        f"held-out accuracy {_accuracy(figures, 'accuracy')}{of_source}, "
        f"calibration error {_number(figure(figures, 'calibration_error'))}, "
        f"correlation with length {_number(figure(figures, 'length_correlation'))}"
    )


def weakest_source(figures: Mapping[str, Any]) -> str | None:
    """Name the source whose pairs the model knows least; None where no interval lies below that of all pairs."""
    below = figure(figures, "accuracy", "low") or 0.0
    found = lookup(figures, "accuracy_by_source") or {}
    bounds = [(high, name) for name in found if (high := figure(found, name, "high")) is not None and high < below]
    return min(bounds)[1] if bounds else None


def _accuracy(figures: Mapping[str, Any], *path: str) -> str:
    value, low, high = (_number(figure(figures, *path, key)) for key in ("value", "low", "high"))
    pairs = figure(figures, *path, "pairs")
    shared = shared_pairs(figures, *path)
    return f"{value} [{low}, {high}] on {shared or f'{_number(pairs, 0)} pairs'}"


def _number(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else number(value, digits)


if __name__ == "__main__":
    main(reward_check)
