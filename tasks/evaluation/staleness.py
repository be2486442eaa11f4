"""Whether a reward model still fits what the policy writes: drift from its training answers, and agreement.

A policy moves away from the answers that its reward model learned from, and there the reward is a guess (Gao et al.
2023, "Scaling Laws for Reward Model Overoptimization"). Drift is measured by a classifier two-sample test (Lopez-Paz
and Oquab 2017, "Revisiting Classifier Two-Sample Tests"): how well a classifier tells one kind of answer from the other
on rows that it has not seen. The area under the ROC curve does not depend on how many of each there are: 0.5, nothing
tells them apart; 1, anything does.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

MOST = 2_000  # answers of a kind: the classifier takes seconds
FOLDS = 5
RESAMPLES, CONFIDENCE = 500, 0.95
FEWEST = 20  # groups of a kind, below which no figure is given
# Words and marks: how an answer ends is a part of how it is written.
TOKEN = r"(?u)\w+|[^\w\s]"


class Text(NamedTuple):
    """An answer and the prompt that it is of: those of one prompt are never on both sides of a split."""

    prompt: str
    answer: str


class Figure(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


def drift(learned: Sequence[Text], answered: Sequence[Text]) -> Figure | None:
    """Area under the ROC curve of a classifier that tells n answers of a policy from m that a reward model learned.

    It is a logistic regression on TF-IDF of words, marks and pairs of them, and on the length; each fifth of the
    prompts is scored by the classifier of the others. The interval is a bootstrap over prompts; it leaves out that the
    classifiers are fitted on a sample too, and is a little narrow.

    Args:
        learned: m answers that the reward model was trained on.
        answered: n answers of the policy.

    Returns:
        The figure; None for fewer than `FEWEST` prompts of either.
    """
    rows = [*_some(learned), *_some(answered)]
    labels = np.array([0] * len(_some(learned)) + [1] * len(_some(answered)))
    groups = np.array([_number(row.prompt) for row in rows])
    if any(len(set(groups[labels == label])) < FEWEST for label in (0, 1)):
        return None
    scores = np.zeros(len(rows))
    for fold in range(FOLDS):
        asked = groups % FOLDS == fold
        if asked.any() and len(set(labels[~asked])) == 2:
            scores[asked] = _scores([row.answer for row in rows], labels, asked)
    return _resampled(groups, lambda places: _auc(scores[places], labels[places]))


def agreement(prompts: Sequence[str], rewards: Sequence[float], held_out: Sequence[float]) -> Figure | None:
    """Spearman's rank correlation of two rewards' scores of the same n answers, with a bootstrap over prompts.

    Args:
        prompts: n, the prompt of each answer.
        rewards: n scores by one.
        held_out: n scores by the other.

    Returns:
        The figure; None for fewer than `FEWEST` prompts, or where one reward scores all answers the same.
    """
    groups = np.array([_number(prompt) for prompt in prompts])
    ours, theirs = np.array(rewards, dtype=float), np.array(held_out, dtype=float)
    if len(set(groups)) < FEWEST or not np.ptp(ours) or not np.ptp(theirs):
        return None
    return _resampled(groups, lambda places: _spearman(ours[places], theirs[places]))


def _scores(answers: Sequence[str], labels: NDArray[np.int64], asked: NDArray[np.bool_]) -> NDArray[np.float64]:
    known = [answer for answer, is_asked in zip(answers, asked, strict=True) if not is_asked]
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN, sublinear_tf=True)
    try:
        vectors.fit(known)
        words = vectors.transform(answers)
    except ValueError:  # no answer has a word
        words = csr_matrix((len(answers), 1))
    lengths = np.log1p([len(answer.split()) for answer in answers])
    scale = lengths[~asked].std() or 1.0
    features = csr_matrix(hstack([words, csr_matrix(((lengths - lengths[~asked].mean()) / scale)[:, None])]))
    classifier = LogisticRegression(class_weight="balanced", max_iter=10_000)
    classifier.fit(features[~asked], labels[~asked])
    scores: NDArray[np.float64] = classifier.decision_function(features[asked])
    return scores


def _auc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Share of pairs of one answer of each kind that the scores order rightly; ties count half."""
    ones, zeros = int(labels.sum()), int((1 - labels).sum())
    if not ones or not zeros:
        return 0.5
    return float((rankdata(scores)[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _spearman(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    first, second = rankdata(ours), rankdata(theirs)
    if not np.ptp(first) or not np.ptp(second):
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _resampled(groups: NDArray[np.int64], statistic: Any) -> Figure:  # noqa: ANN401 - places to a float
    """Give a statistic of all rows with its percentile bootstrap interval over whole groups."""
    _, inverse = np.unique(groups, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    places = np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(places), size=len(places))
        draws.append(statistic(np.concatenate([places[each] for each in drawn])))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Figure(float(statistic(np.arange(len(groups)))), float(low), float(high))


def _some(texts: Sequence[Text]) -> Sequence[Text]:
    """Give at most `MOST`, evenly spaced, so that they are the same every time."""
    return texts[:: -(-len(texts) // MOST)] if len(texts) > MOST else texts


def _number(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "backslashreplace"), digest_size=6).digest())
