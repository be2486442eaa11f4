"""Reads metrics/reward.json, writes metrics/reward_check.json.

The check of the reward model before PPO learns from it: a policy finds every weakness of its reward. What is
written does not name the threshold, so that a changed one trains nothing again.
"""

from tasks.common.errors import InputError
from tasks.common.files import METRICS, write_json
from tasks.common.rounding import number
from tasks.evaluation.gate.reward_models import shared_pairs
from tasks.evaluation.reward_figures import REWARD, AccuracyInterval, RewardModelFigures, read_reward_model
from tasks.methods import METHODS
from tasks.settings.params import Params
from tasks.stage import main


def reward_check(params: Params) -> None:
    """Stop the pipeline where PPO would learn from a reward model that does not order the pairs as people did.

    A method that does not learn from it is not stopped: the gate checks the reward model before its candidate is
    promoted. Functions that the policy learns from have scored held-out prompts in reward_functions; their names are
    written down.

    Raises:
        InputError: the lower bound of the reward model's held-out accuracy is below the gate's threshold.
    """
    figures, threshold = read_reward_model(REWARD), params.gate.min_reward_accuracy
    method = METHODS[params.align.method]
    learns_from_rewards = "rewards" in method.learns_from
    if learns_from_rewards and figures and (figures.accuracy.low is None or figures.accuracy.low < threshold):
        cure = "give more or cleaner pairs, train it better (reward), or lower the threshold"
        raise InputError(
            f"{method.title} would learn from a reward model that fails its check: {described(figures)}; the "
            f"lower bound of the accuracy must reach {threshold:g} (gate.min_reward_accuracy): {cure}"
        )
    functions = [reward.name for reward in params.rewards.training if learns_from_rewards and not reward.is_model]
    learned_from = learns_from_rewards and figures is not None
    checked = {"learned_from": learned_from} | ({"functions": functions} if functions else {})
    write_json(METRICS / "reward_check.json", checked)


def described(figures: RewardModelFigures) -> str:
    """Put the reward model's figures into one line."""
    source = weakest_source(figures)
    of_source = f" (weakest source: {source}, {_accuracy(figures.accuracy_by_source[source])})" if source else ""
    return (
        f"held-out accuracy {_accuracy(figures.accuracy)}{of_source}, calibration error "
        f"{number(figures.calibration_error)}, correlation with length {number(figures.length_correlation)}"
    )


def weakest_source(figures: RewardModelFigures) -> str | None:
    """Name the source whose pairs the model orders worst; None where no interval lies below that of all pairs."""
    below = figures.accuracy.low or 0.0
    bounds = [
        (found.high, name)
        for name, found in figures.accuracy_by_source.items()
        if found.high is not None and found.high < below
    ]
    return min(bounds)[1] if bounds else None


def _accuracy(accuracy: AccuracyInterval) -> str:
    value, low, high = (number(each) for each in (accuracy.value, accuracy.low, accuracy.high))
    shared = shared_pairs(accuracy).removesuffix(".").replace("The ", "; the ")
    return f"{value} [{low}, {high}] on {accuracy.pairs:,} pairs{shared}"


if __name__ == "__main__":
    main(reward_check)
