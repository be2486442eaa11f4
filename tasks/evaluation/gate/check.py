"""What a check of the gate is: one figure, its threshold, a verdict, and a line that says so."""

from typing import NamedTuple

from tasks.common.rounding import number
from tasks.evaluation.gate.result import Verdict
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.reward_figures import RewardModelFigures
from tasks.evaluation.schema import Evaluation, IntervalFigure

AT_LEAST, AT_MOST = ">=", "<="


class Evidence(NamedTuple):
    """What the gate reads: figures that other stages wrote, and the model that the candidate must beat."""

    evaluation: Evaluation
    reward: RewardModelFigures | None  # None: no reward model was trained
    held_out_reward: RewardModelFigures | None  # likewise
    opponent: Opponent


class Check(NamedTuple):
    """One figure and its threshold."""

    name: str
    figure: float | None  # None: it could not be computed
    threshold: float
    verdict: Verdict
    sentence: str


class Bounds(NamedTuple):
    """A mean with its interval, all of it known."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


def bounds(figure: IntervalFigure | None) -> Bounds | None:
    """Give a mean with its interval; None where part of it could not be computed."""
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return None
    return Bounds(figure.value, figure.low, figure.high)


def at_least(
    name: str,
    words: str,
    figure: float,
    threshold: float,
    *,
    details: str = "",
    digits: int = 3,
    verdict: Verdict | None = None,
) -> Check:
    """Check that a figure reaches its threshold.

    Args:
        name: of the check.
        words: that name the figure, at the beginning of the line.
        figure: in it with so many `digits`.
        threshold: its least value.
        details: further sentences.
        digits: behind the point.
        verdict: in place of the one that follows from figure and threshold.
    """
    verdict = verdict or ("passed" if figure >= threshold else "failed")
    return _check(name, f"{words} {number(figure, digits)} {AT_LEAST}", figure, threshold, (verdict, details))


def at_most(name: str, words: str, figure: float, threshold: float, *, details: str = "", digits: int = 3) -> Check:
    """Check that a figure does not exceed its threshold; the arguments are those of `at_least`."""
    verdict: Verdict = "passed" if figure <= threshold else "failed"
    return _check(name, f"{words} {number(figure, digits)} {AT_MOST}", figure, threshold, (verdict, details))


def _check(name: str, words: str, figure: float, threshold: float, found: tuple[Verdict, str]) -> Check:
    verdict, details = found
    return Check(name, figure, threshold, verdict, f"{words} {threshold:g}: {verdict}. {details}".strip())


def not_computed(name: str, words: str, threshold: float) -> Check:
    """Fail a check whose figure is null."""
    return Check(name, None, threshold, "failed", f"{words} could not be computed: failed.")
