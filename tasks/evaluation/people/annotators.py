"""The uncertainty of a win rate by people that comes from the choice of the people: each has their own taste.

Votes are crossed: a prompt has several annotators, an annotator several prompts. The bootstrap over prompts covers the
choice of prompts alone. Its interval is widened here by how much annotators differ beyond chance.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from tasks.evaluation.compare import Interval, WinRate, concluded


class AnnotatorVote(NamedTuple):
    """A vote and what it shares with others."""

    annotator: str
    prompt: str
    conversation: str  # of the prompt
    points: float  # 1 for the candidate, 0 for the opponent, a half for neither


def over_annotators(rate: WinRate, votes: Sequence[AnnotatorVote], confidence: float) -> WinRate:
    """Widen the interval of a win rate over prompts to hold for annotators like these; of one annotator it stays.

    The variance is that between prompts, and that between annotators less that of single votes where the latter is
    smaller (Cameron, Gelbach and Miller 2011, "Robust Inference With Multiway Clustering"); few annotators leave it
    unsure, which widens by Student's t (degrees of freedom: Satterthwaite 1946). It is that of the mean of a prompt's
    votes; who wins the prompt is taken to vary by as much more.

    Args:
        rate: over the prompts, each won where more of its votes are for the candidate.
        votes: all votes on these prompts.
        confidence: of the interval.
    """
    prompts = _numbers([each.prompt for each in votes])
    counts = np.bincount(prompts)
    points = np.array([each.points for each in votes])
    scores = np.bincount(prompts, points) / counts
    # What each vote adds to the distance of the mean score from what is expected of it.
    parts = (points - scores.mean()) / counts[prompts] / len(counts)
    between_prompts, independent = _variance(parts, [each.conversation for each in votes])
    between_annotators, annotators = _variance(parts, [each.annotator for each in votes])
    within, _ = _variance(parts, [(each.annotator, each.conversation) for each in votes])
    added = between_annotators - within
    if annotators == 1 or independent == 1 or added <= 0 or between_prompts == 0:
        return rate
    total = between_prompts + added
    degrees = total**2 / (between_prompts**2 / (independent - 1) + between_annotators**2 / (annotators - 1))
    tail = (1 + confidence) / 2
    wider = math.sqrt(total / between_prompts) * max(1.0, stdtrit(degrees, tail) / stdtrit(independent - 1, tail))
    low = max(0.0, rate.value - (rate.value - rate.low) * wider)
    high = min(1.0, rate.value + (rate.high - rate.value) * wider)
    conclusion = concluded(Interval(rate.value, low, high), 0.5, is_significant=rate.sign_test < 1 - confidence)
    return rate._replace(low=low, high=high, conclusion=conclusion)


def _variance(parts: NDArray[np.float64], groups: Sequence[Hashable]) -> tuple[float, int]:
    """Variance of the sum of all parts, where those of a group vary together, and the number of groups."""
    sums = np.bincount(_numbers(groups), parts)
    count = len(sums)
    return (count / (count - 1) * float((sums**2).sum()) if count > 1 else 0.0), count


def _numbers(names: Sequence[Hashable]) -> NDArray[np.int64]:
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], dtype=np.int64)
