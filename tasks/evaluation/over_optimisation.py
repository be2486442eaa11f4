"""The over-optimisation curve: rewards against KL to SFT, at evaluation points along training.

Training raises the training reward; the held-out reward model and the ground-truth rewards show what that is worth.
Source: Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization".
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tasks.evaluation.compare import Resampling, bootstrap_interval, outcomes, win_rate
from tasks.evaluation.metrics import mean, standard_error
from tasks.evaluation.scores import ScoresByName, independent_rewards


class EvaluationPoint(NamedTuple):
    """The policy after some steps of its training: its answers to n prompts, the same at every point."""

    step: int
    prompts: list[str]  # their ids
    answers: list[str]
    kl: list[float]  # to SFT, nats, one estimate an answer
    scores: ScoresByName
    conversations: tuple[str, ...] | None = None  # of the prompts; None: each is its own


def over_optimisation_curve(points: Sequence[EvaluationPoint], resampling: Resampling) -> list[dict[str, Any]]:
    """Sum up the evaluation points; the first is SFT, and the last is compared with each before it.

    Those comparisons have a confidence raised by Bonferroni's correction, because the gate looks for the worst of them.

    Args:
        points: of one training, in the order of their steps.
        resampling: how intervals are drawn.
    """
    if not points:
        return []
    first, *_, last = points
    resampling = resampling._replace(conversations=last.conversations)
    comparisons = max(1, len(points) - 1) * len(independent_rewards(last.scores))
    corrected = resampling._replace(confidence=1 - (1 - resampling.confidence) / comparisons)
    return [
        {
            "step": point.step,
            "kl": {
                "mean": mean(point.kl),
                "standard_error": standard_error(point.kl, resampling.groups(len(point.kl))),
            },
            **curve_figures(point.scores, wins_over(point.scores, first.scores), resampling),
            "last_over_this": {name: win_rate(last.scores[name], own, corrected) for name, own in point.scores.items()}
            if point is not last
            else None,
        }
        for point in points
    ]


def curve_figures(scores: ScoresByName, wins: ScoresByName, resampling: Resampling) -> dict[str, Any]:
    """Mean score and win rate over SFT by each reward, with their intervals."""
    return {
        "scores": {name: bootstrap_interval(values, resampling) for name, values in scores.items()},
        "win_rate": {name: bootstrap_interval(values, resampling) for name, values in wins.items()},
    }


def wins_over(ours: ScoresByName, theirs: ScoresByName) -> ScoresByName:
    """Who wins each prompt, by each reward: 1 the first, 0 the other, a half nobody."""
    return {name: outcomes(values, theirs[name]).tolist() for name, values in ours.items()}


def point_rows(points: Sequence[EvaluationPoint]) -> Iterator[dict[str, Any]]:
    """Give a row an answer, for people to read."""
    for point in points:
        for place, (prompt, answer) in enumerate(zip(point.prompts, point.answers, strict=True)):
            scores = {name: values[place] for name, values in point.scores.items()}
            yield {"step": point.step, "id": prompt, "answer": answer, "kl": point.kl[place], "scores": scores}
