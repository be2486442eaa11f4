"""Checks of the reward models: who orders the pairs of people no better than chance has no say."""

from tasks.common.rounding import ABSENT, number
from tasks.evaluation.gate.check import Check, Evidence, at_least, bounds, not_computed
from tasks.evaluation.reward_figures import BASELINES, AccuracyInterval, BaselineName, RewardModelFigures
from tasks.rewards.cut_answers import CutAnswers, cut_answers_sentence

HARDLY_FEWER = 0.95  # of the pairs: their intervals differ by less than a fortieth


def accuracy(name: str, model: str, figures: RewardModelFigures | None, threshold: float) -> Check | None:
    """The lower bound of the accuracy on held-out pairs must reach the threshold; None where no model was trained."""
    if figures is None:
        return None
    words = f"Accuracy of {model} on held-out pairs, lower bound"
    if figures.accuracy.low is None:
        return not_computed(name, words, threshold)
    return at_least(name, words, figures.accuracy.low, threshold, details=shared_pairs(figures.accuracy))


def shared_pairs(accuracy: AccuracyInterval) -> str:
    """Say how many independent pairs the interval of an accuracy stands for; nothing where hardly fewer than all."""
    independent = accuracy.effective_pairs
    if independent is None or independent > HARDLY_FEWER * accuracy.pairs:
        return ""
    return f"The {accuracy.pairs:,} pairs share prompts and count as {number(independent, 0)} independent ones."


def beats_baselines(figures: RewardModelFigures | None, *, is_required: bool) -> Check | None:
    """The reward model must be more accurate than each baseline, if that is required; None where no model was trained.

    The figure is the least lower bound of a difference in accuracy, which must be above 0.
    """
    if figures is None or not is_required:
        return None
    name, words = "reward_baselines", "Accuracy of the reward model minus that of the best baseline, lower bound"
    lows = [each.difference.low for each in figures.baselines.values() if each.difference.low is not None]
    if len(lows) < len(figures.baselines):
        return not_computed(name, words, 0.0)
    unbeaten = baselines_not_beaten(figures)
    details = " ".join(baseline_sentence(figures, each) for each in unbeaten)
    return at_least(name, words, min(lows), 0.0, details=details, verdict="failed" if unbeaten else "passed")


def baselines_not_beaten(figures: RewardModelFigures) -> list[BaselineName]:
    """Name the baselines over which the reward model's accuracy is not significantly higher."""
    found = {name: bounds(each.difference) for name, each in figures.baselines.items()}
    return [name for name, interval in found.items() if interval is None or interval.low <= 0]


def baseline_sentence(figures: RewardModelFigures, name: BaselineName, model: str = "the reward model") -> str:
    """Compare the model with a baseline that it does not beat."""
    baseline, interval = figures.baselines[name], bounds(figures.baselines[name].difference)
    ours, theirs = number(figures.accuracy.value), number(baseline.accuracy.value)
    return (
        f"{model[0].upper()}{model[1:]} is not significantly better than a baseline without a model "
        f"({BASELINES[name]}) on the same held-out pairs: accuracy {ours} and {theirs}, difference "
        f"{interval or ABSENT}."
    )


def baseline_warnings(evidence: Evidence) -> list[str]:
    """Warn of reward models that know no more than length or words."""
    models = (("the reward model", evidence.reward), ("the held-out reward model", evidence.held_out_reward))
    return [
        baseline_sentence(figures, name, model)
        for model, figures in models
        if figures
        for name in baselines_not_beaten(figures)
    ]


def cut_answers_warnings(evidence: Evidence) -> list[str]:
    """Warn of a training reward that mainly punishes answers which the limit cuts."""
    figures = evidence.evaluation.sft_cut_answers
    if figures is None:
        return []
    found = CutAnswers(**figures.as_json())
    return [cut_answers_sentence(found, "evaluate.max_new_tokens")] if found.is_large else []
