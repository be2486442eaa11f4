"""Two models on the same prompts: who wins, by how much, and with what uncertainty.

Everything is paired: the two answers to a prompt stay together, so that the difficulty of the prompt cancels.
Prompts that are turns of one conversation are not independent, so they stay together too: the bootstrap draws, and the
sign test counts, conversations. Where no two prompts share one, a conversation is a single prompt.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from tasks.evaluation.power import prompts_needed
from tasks.evaluation.schema import Conclusion

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
    sign_test: float  # two-sided p of the exact sign test, of conversations where prompts share some: ties are left out
    conclusion: Conclusion
    prompts_needed: int | None  # to show that it differs from a half; None: it is shown already, or it is a half


class Resampling(NamedTuple):
    """How intervals are drawn: the same seed and the same count of conversations give the same resamples."""

    resamples: int
    confidence: float
    seed: int
    conversations: tuple[str, ...] | None = None  # of the n prompts; None: each is its own

    def at(self, places: Sequence[int]) -> "Resampling":
        """Give what draws some of the prompts."""
        if self.conversations is None:
            return self
        return self._replace(conversations=tuple(self.conversations[place] for place in places))

    def groups(self, count: int) -> NDArray[np.int64] | None:
        """Number the conversation of each of `count` prompts, (count,); None where no two share one."""
        if self.conversations is None:
            return None
        if len(self.conversations) != count:
            raise ValueError(f"conversations of {len(self.conversations)} prompts for {count} figures")
        places = {name: number for number, name in enumerate(dict.fromkeys(self.conversations))}
        return None if len(places) == count else np.array([places[name] for name in self.conversations], np.int64)


def bootstrap_interval(values: Sequence[float], resampling: Resampling) -> Interval:
    """Percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: n figures, one a prompt; to compare two models, the n differences between them.
        resampling: count of resamples, confidence, seed and conversations.

    Source for conversations, which are drawn whole: Davison and Hinkley 1997, "Bootstrap Methods", section 3.8.
    """
    figures = np.asarray(values, dtype=np.float64)
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(_resampled_means(figures, resampling), [tail, 1 - tail])
    return Interval(float(figures.mean()), float(low), float(high))


def win_rate(ours: Sequence[float], theirs: Sequence[float], resampling: Resampling) -> WinRate:
    """Win rate by score, with a paired bootstrap interval and the exact sign test.

    The conclusion is better or worse only where the interval lies on one side of a half and the sign test agrees: on
    few prompts the bootstrap interval alone is too narrow (one win of one gives the interval 1 to 1).

    Args:
        ours: n scores of the model to assess, one a prompt.
        theirs: n scores of the other on the same prompts.
        resampling: count of resamples, confidence and seed.
    """
    won = outcomes(ours, theirs)
    interval = bootstrap_interval(won.tolist(), resampling)
    wins, losses = int((won == 1).sum()), int((won == 0).sum())
    groups = resampling.groups(len(won))
    net = won - 0.5 if groups is None else np.bincount(groups, won - 0.5)
    p = sign_test(int((net > 0).sum()), int((net < 0).sum()))
    conclusion = concluded(interval, 0.5, is_significant=p < 1 - resampling.confidence)
    effect, deviation = interval.value - 0.5, _deviation(won, groups)
    needed = prompts_needed(effect, deviation, resampling.confidence) if conclusion == "inconclusive" else None
    return WinRate(*interval, float((won == 0.5).mean()), wins, losses, p, conclusion, needed)


def outcomes(ours: ArrayLike, theirs: ArrayLike) -> NDArray[np.float64]:
    """Who wins each of n prompts by score: 1 the first model, 0 the other, a half nobody. (n,), or (n, k)."""
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return np.where(np.abs(differences) <= TIE, 0.5, (differences > 0).astype(np.float64))


def concluded(interval: Interval, null: float, is_significant: bool = True) -> Conclusion:
    """Better or worse where the interval excludes `null` and the other test is significant too."""
    if is_significant and interval.low > null:
        return "better"
    if is_significant and interval.high < null:
        return "worse"
    return "inconclusive"


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test: the chance that a fair coin is as uneven or more; 1 where nobody won."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def resampled_counts(count: int, resampling: Resampling) -> Iterator[NDArray[np.float64]]:
    """Draw resamples of `count` prompts, some at a time: how often each prompt is in each, (R, count)."""
    groups = resampling.groups(count)
    for drawn in _draws(count if groups is None else int(groups.max()) + 1, resampling):
        counts = np.zeros(drawn.shape)
        np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1)
        yield counts if groups is None else counts[:, groups]


def _resampled_means(values: NDArray[np.float64], resampling: Resampling) -> NDArray[np.float64]:
    groups = resampling.groups(len(values))
    if groups is None:
        return np.concatenate([values[drawn].mean(axis=1) for drawn in _draws(len(values), resampling)])
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    means = [sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in _draws(len(sums), resampling)]
    return np.concatenate(means)


def _deviation(values: NDArray[np.float64], groups: NDArray[np.int64] | None) -> float:
    """Standard deviation of independent prompts whose mean would vary as much."""
    if groups is None:
        return float(values.std())
    return float(np.sqrt((np.bincount(groups, values - values.mean()) ** 2).sum() / len(values)))


def _draws(count: int, resampling: Resampling) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(resampling.seed)
    rows = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, resampling.resamples, rows):
        yield generator.integers(count, size=(min(rows, resampling.resamples - start), count))
