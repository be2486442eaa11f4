"""Checks of the reward models: who orders the pairs of people no better than chance has no say."""

from tasks.common.rounding import number
from tasks.evaluation.gate.check import Check, at_least, not_computed
from tasks.evaluation.reward_figures import AccuracyInterval, RewardModelFigures

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
