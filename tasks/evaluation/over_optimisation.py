"""What distance from SFT buys: scores against KL along the training, by the reward model and by those it cannot bribe.

The reward model is the proxy that training raises; the held-out judge and the known rule see what that is worth.
Source: Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.evaluation.compare import Resampling, bootstrap_interval, outcomes, win_rate
from tasks.evaluation.metrics import mean, standard_error

PROXY, HELD_OUT, GOLD = "reward", "held_out", "ground_truth"
Scores = Mapping[str, Sequence[float]]  # by the name of who judged: n scores, one a prompt


class Mark(NamedTuple):
    """The policy after some steps of its training: what it said to the n prompts of all marks."""

    step: int
    prompts: list[str]  # their ids
    answers: list[str]
    kl: list[float]  # to SFT, nats, one estimate an answer
    scores: Scores
    conversations: tuple[str, ...] | None = None  # of the prompts; None: each is its own


def frontier(marks: Sequence[Mark], resampling: Resampling) -> list[dict[str, Any]]:
    """Sum up the marks in their order, the first of which is SFT; all but the last beside the last one too.

    The last mark is compared with each earlier one at a confidence raised by Bonferroni's correction, because whoever
    looks for the mark that it lost most against looks at all of them.

    Args:
        marks: of one training, in the order of their steps.
        resampling: how intervals are drawn.
    """
    if not marks:
        return []
    first, *_, last = marks
    resampling = resampling._replace(conversations=last.conversations)
    at_once = resampling._replace(confidence=1 - (1 - resampling.confidence) / max(1, len(marks) - 1))
    return [
        {
            "step": mark.step,
            "kl": {"mean": mean(mark.kl), "standard_error": standard_error(mark.kl, resampling.groups(len(mark.kl)))},
            **judged(mark.scores, over(mark.scores, first.scores), resampling),
            "last_over_this": {name: win_rate(last.scores[name], own, at_once) for name, own in mark.scores.items()}
            if mark is not last
            else None,
        }
        for mark in marks
    ]


def judged(scores: Scores, wins: Scores, resampling: Resampling) -> dict[str, Any]:
    """Mean score and win rate over SFT by each who judged, with their intervals."""
    return {
        **{name: bootstrap_interval(values, resampling) for name, values in scores.items()},
        "win_rate": {name: bootstrap_interval(values, resampling) for name, values in wins.items()},
    }


def over(ours: Scores, theirs: Scores) -> Scores:
    """Who wins each prompt, by each who judged: 1 the first, 0 the other, a half nobody."""
    return {name: outcomes(values, theirs[name]).tolist() for name, values in ours.items()}


def rows(marks: Sequence[Mark]) -> Iterator[dict[str, Any]]:
    """A row an answer, to be read."""
    for mark in marks:
        for place, (prompt, answer) in enumerate(zip(mark.prompts, mark.answers, strict=True)):
            scores = {name: values[place] for name, values in mark.scores.items()}
            yield {"step": mark.step, "id": prompt, "answer": answer, "kl": mark.kl[place], **scores}
