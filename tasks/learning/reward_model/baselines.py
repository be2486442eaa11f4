"""What a reward model must beat: counting letters and counting words, on the same held-out pairs.

A reward model that orders pairs no better than these has learned length or vocabulary, which a policy can produce at
will.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tasks.learning.reward_model.calibration import CONFIDENCE, ScoredPair, accuracy_by

LARGEST_FIT = 20_000  # pairs: the words of all their answers lie in memory
RESAMPLES = 2000
WORD = r"(?u)\b\w+\b"


class Texts(NamedTuple):
    """The two answers of a pair."""

    chosen: str
    rejected: str


def baselines(
    scored: Sequence[ScoredPair], held_out: Sequence[Texts], learned: Sequence[Texts], seed: int
) -> dict[str, dict[str, Any]]:
    """Accuracy of each baseline, and by how much the reward model is more accurate.

    Args:
        scored: the held-out pairs with the reward model's scores; those of one prompt stay together in the bootstrap.
        held_out: the answers of the same pairs.
        learned: the answers of the training pairs.
        seed: of the bootstrap.
    """
    margins = {
        "longer_wins": [float(pair.longer_by) for pair in scored],
        "tf_idf": word_margins(learned, held_out).tolist(),
    }
    return {
        name: _compared(scored, [_with_margin(pair, margin) for pair, margin in zip(scored, found, strict=True)], seed)
        for name, found in margins.items()
    }


def word_margins(learned: Sequence[Texts], asked: Sequence[Texts]) -> NDArray[np.float64]:
    """Margins (N,) by logistic regression on the difference of the two answers' TF-IDF vectors of words and word pairs.

    There is no intercept, so each difference stands beside its negative with the other label.
    """
    learned = learned[:: -(-len(learned) // LARGEST_FIT)]
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD)
    try:
        vectors.fit(answer for pair in learned for answer in pair)
    except ValueError:  # no answer has a word
        return np.zeros(len(asked))
    differences, others = (
        vectors.transform([pair.chosen for pair in pairs]) - vectors.transform([pair.rejected for pair in pairs])
        for pairs in (learned, asked)
    )
    labels = [1] * len(learned) + [0] * len(learned)
    regression = LogisticRegression(C=0.5, fit_intercept=False, max_iter=10_000)  # 0.5: every pair stands twice
    regression.fit(vstack([differences, -differences]), labels)
    margins: NDArray[np.float64] = regression.decision_function(others)
    return margins


def difference(ours: Sequence[ScoredPair], theirs: Sequence[ScoredPair], seed: int) -> dict[str, float]:
    """Mean difference in accuracy on the same pairs, with its percentile bootstrap interval over whole prompts."""
    values = np.array([one.correct - other.correct for one, other in zip(ours, theirs, strict=True)])
    names = [number if pair.prompt is None else pair.prompt for number, pair in enumerate(ours)]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    groups = np.array([places[name] for name in names])
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(sums), size=len(sums)) for _ in range(RESAMPLES))
    means = [sums[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _compared(ours: Sequence[ScoredPair], theirs: Sequence[ScoredPair], seed: int) -> dict[str, Any]:
    [accuracy] = accuracy_by({"": theirs}).values()
    return {"accuracy": accuracy, "difference": difference(ours, theirs, seed)}


def _with_margin(pair: ScoredPair, margin: float) -> ScoredPair:
    return pair._replace(chosen_score=margin, rejected_score=0.0)
