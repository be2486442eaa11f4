"""Two models on the same prompts: who wins, by how much, and how sure that is.

Everything is paired: the two answers to a prompt stay together, so that what makes a prompt hard for both cancels.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Verdict = Literal["better", "worse", "inconclusive"]
# Scores nearer than this are a tie: the same answer in another batch is padded, and so rounded, otherwise.
TIE = 1e-3
# Numbers the bootstrap draws at once: bounds its memory, never changes its result.
DRAWN_AT_ONCE = 2**20


class Interval(NamedTuple):
    """A mean over prompts and its bootstrap interval."""

    value: float
    low: float
    high: float


class WinRate(NamedTuple):
    """How often one model's answer beats the other's; a tie is half a win."""

    value: float
    low: float
    high: float
    ties: float  # share of the prompts
    wins: int
    losses: int
    sign_test: float  # two-sided p of the exact sign test: ties are left out
    verdict: Verdict


class Resampling(NamedTuple):
    """How intervals are drawn: the same seed and the same count of prompts give the same resamples."""

    resamples: int
    confidence: float
    seed: int


def bootstrap_interval(values: Sequence[float], resampling: Resampling) -> Interval:
    """Percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: n figures, one a prompt; to compare two models, the n differences between them.
        resampling: count of resamples, confidence and seed.
    """
    figures = np.asarray(values, dtype=np.float64)
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(_resampled_means(figures, resampling), [tail, 1 - tail])
    return Interval(float(figures.mean()), float(low), float(high))


def win_rate(ours: Sequence[float], theirs: Sequence[float], resampling: Resampling) -> WinRate:
    """Win rate by score, with a paired bootstrap interval and the exact sign test.

    The verdict is better or worse only where the interval lies on one side of a half and the sign test agrees: the
    bootstrap alone is too sure of itself on few prompts (one win of one gives the interval 1 to 1).

    Args:
        ours: n scores of the model that is judged, one a prompt.
        theirs: n scores of the other on the same prompts.
        resampling: count of resamples, confidence and seed.
    """
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    outcomes = np.where(np.abs(differences) <= TIE, 0.5, (differences > 0).astype(np.float64))
    interval = bootstrap_interval(outcomes.tolist(), resampling)
    wins, losses = int((outcomes == 1).sum()), int((outcomes == 0).sum())
    p = sign_test(wins, losses)
    sure = p < 1 - resampling.confidence
    return WinRate(*interval, float((outcomes == 0.5).mean()), wins, losses, p, verdict(interval, 0.5, sure))


def verdict(interval: Interval, null: float, sure: bool = True) -> Verdict:
    """Better or worse where the interval excludes `null` and nothing else leaves a doubt."""
    if sure and interval.low > null:
        return "better"
    if sure and interval.high < null:
        return "worse"
    return "inconclusive"


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test: how odd so uneven a count is of a fair coin; 1 where nobody won."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _resampled_means(values: NDArray[np.float64], resampling: Resampling) -> NDArray[np.float64]:
    generator = np.random.default_rng(resampling.seed)
    rows = max(1, DRAWN_AT_ONCE // len(values))
    counts = [min(rows, resampling.resamples - start) for start in range(0, resampling.resamples, rows)]
    draws = (generator.integers(len(values), size=(count, len(values))) for count in counts)
    return np.concatenate([values[drawn].mean(axis=1) for drawn in draws])
