"""What a reward model is worth: accuracy with its interval, calibration, and how much of it is length."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

CONFIDENCE = 0.95
CALIBRATION_BINS = 10
MARGIN_BINS = 20  # an even number: one bin must not hold pairs that are right and others that are wrong


class ScoredPair(NamedTuple):
    """The raw scores of two answers and their lengths in tokens."""

    chosen_score: float
    rejected_score: float
    chosen_length: int
    rejected_length: int
    prompt: str | None = None  # that pairs may share, so that one is right where another is; None: its own

    @property
    def swapped(self) -> "ScoredPair":
        """The same pair, as an annotator sees it who chose the other answer."""
        return ScoredPair(self.rejected_score, self.chosen_score, self.rejected_length, self.chosen_length, self.prompt)

    @property
    def margin(self) -> float:
        """By how much the chosen answer scores higher."""
        return self.chosen_score - self.rejected_score

    @property
    def correct(self) -> float:
        """1 where the chosen answer scores higher, 1/2 for a tie, else 0."""
        return 0.5 if self.margin == 0 else float(self.margin > 0)

    @property
    def longer_by(self) -> int:
        """Tokens by which the chosen answer is longer."""
        return self.chosen_length - self.rejected_length


def wilson_interval(successes: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a proportion, inside [0, 1] even for few trials (Wilson 1927, equation 4)."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def reward_metrics(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Accuracy, margins, calibration and length bias of a reward model on held-out pairs."""
    margins = [pair.margin for pair in pairs]
    scores = [score for pair in pairs for score in (pair.chosen_score, pair.rejected_score)]
    lengths = [length for pair in pairs for length in (pair.chosen_length, pair.rejected_length)]
    return {
        "accuracy": {**_accuracy_and_interval(pairs), "ties": margins.count(0.0)},
        "margin": {"mean": statistics.fmean(margins), "std": statistics.pstdev(margins), **histogram(margins)},
        "score": {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores)},
        "calibration_error": calibration_error(pairs),
        "length_correlation": correlation(scores, lengths),
        "accuracy_by_length": _by(pairs, _longer, ("chosen_longer", "same_length", "rejected_longer")),
        "accuracy_by_length_difference": _by(pairs, _difference_third(pairs), ("small", "medium", "large")),
        "accuracy_by_confidence": _by(
            pairs, _confidence_fifth, ("0.5-0.6", "0.6-0.7", "0.7-0.8", "0.8-0.9", "0.9-1.0")
        ),
    }


def accuracy_by(groups: Mapping[str, Sequence[ScoredPair]]) -> dict[str, dict[str, Any]]:
    """Accuracy in each group of pairs, with an interval that holds for it alone, in the order of the groups' names."""
    return {name: _accuracy_and_interval(group) for name, group in sorted(groups.items())}


def effective_count(pairs: Sequence[ScoredPair], confidence: float = CONFIDENCE) -> float:
    """How many independent pairs would tell as much: the count of pairs where no two share a prompt, else fewer.

    The count is divided by the design effect, the variance of the accuracy with pairs of one prompt in clusters over
    that without, and by the square of what Student's t quantiles add for few prompts (Korn and Graubard 1998). A
    Wilson interval of so many trials then holds, as Franco et al. 2019 found of the choices for surveys. One prompt
    more whose pairs are all right and one whose are all wrong, of the mean size, keep the design effect from
    being taken too low near 0 and 1, as two successes and two failures do for one proportion (Agresti and Coull 1998).
    """
    by_prompt: dict[object, list[float]] = {}
    for number, pair in enumerate(pairs):
        by_prompt.setdefault(number if pair.prompt is None else pair.prompt, []).append(pair.correct)
    count, prompts = len(pairs), len(by_prompt)
    if prompts == count:
        return count
    size, added = count / prompts, prompts + 2
    share = (sum(pair.correct for pair in pairs) + size) / (count + 2 * size)
    alone = sum((pair.correct - share) ** 2 for pair in pairs) + size * ((1 - share) ** 2 + share**2)
    clustered = sum(sum(value - share for value in values) ** 2 for values in by_prompt.values())
    clustered += size**2 * ((1 - share) ** 2 + share**2)
    total = count + 2 * size
    design_effect = max(1.0, (added / (added - 1) * clustered) / (total / (total - 1) * alone))
    few = [stdtrit(degrees, (1 + confidence) / 2) for degrees in (count - 1, max(1, prompts - 1))]
    return float(count / design_effect * (few[0] / few[1]) ** 2)


def histogram(margins: Sequence[float], bins: int = MARGIN_BINS) -> dict[str, Any]:
    """Count margins in bins of one width from -`largest` to `largest`, the largest without its sign; 0 is an edge."""
    largest = max(abs(margin) for margin in margins)
    counts, half = [0] * bins, bins // 2
    for margin in margins:
        place = math.floor(margin / largest * half) if largest else 0
        counts[min(half + place, bins - 1)] += 1
    return {"largest": largest, "histogram": counts}


def calibration_error(pairs: Sequence[ScoredPair], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error (Naeini et al. 2015) of sigmoid(|margin|) as the chance of being right.

    The confidences lie in [1/2, 1], cut into equal bins; the error is the mean over pairs of the distance between a
    bin's accuracy and its mean confidence.
    """
    by_bin: dict[int, list[ScoredPair]] = {}
    for pair in pairs:
        by_bin.setdefault(min(bins - 1, int((_confidence(pair) - 0.5) * 2 * bins)), []).append(pair)
    return sum(abs(sum(pair.correct - _confidence(pair) for pair in found)) for found in by_bin.values()) / len(pairs)


def correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    try:
        return statistics.correlation(left, right)
    except statistics.StatisticsError:
        return None


def _accuracy(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    value = statistics.fmean(pair.correct for pair in pairs) if pairs else None
    return {"value": value, "pairs": len(pairs)}


def _accuracy_and_interval(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    count = effective_count(pairs)
    low, high = wilson_interval(sum(pair.correct for pair in pairs) * (count / len(pairs)), count)
    shared = {} if count == len(pairs) else {"effective_pairs": round(count, 1)}
    return {**_accuracy(pairs), **shared, "low": low, "high": high}


def _by(pairs: Sequence[ScoredPair], group: Callable[[ScoredPair], int], names: Iterable[str]) -> dict[str, Any]:
    return {name: _accuracy([pair for pair in pairs if group(pair) == place]) for place, name in enumerate(names)}


def _longer(pair: ScoredPair) -> int:
    return 1 - (pair.longer_by > 0) + (pair.longer_by < 0)


def _difference_third(pairs: Sequence[ScoredPair]) -> Callable[[ScoredPair], int]:
    ordered = sorted(abs(pair.longer_by) for pair in pairs)
    bounds = [ordered[(len(ordered) - 1) * third // 3] for third in (1, 2)]
    return lambda pair: sum(abs(pair.longer_by) > bound for bound in bounds)


def _confidence(pair: ScoredPair) -> float:
    return 1 / (1 + math.exp(-abs(pair.margin)))


def _confidence_fifth(pair: ScoredPair) -> int:
    return min(4, int((_confidence(pair) - 0.5) * 10))
