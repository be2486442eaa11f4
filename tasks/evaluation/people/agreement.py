"""How far annotators who rated the same items agree, beyond agreement by chance."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from nltk.metrics.agreement import AnnotationTask


class Rating(NamedTuple):
    """A label that somebody gave something."""

    annotator: str
    item: str
    label: str


def krippendorff_alpha(ratings: Sequence[Rating]) -> float | None:
    """Agreement beyond chance of any number of annotators, who need not have rated the same items: 1 full, 0 none.

    None where no item was rated twice, or all such ratings have one label.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", for nominal data.
    """
    shared = _rated_by_several(ratings)
    return float(AnnotationTask(shared).alpha()) if len({each.label for each in shared}) > 1 else None


def cohen_kappa(ratings: Sequence[Rating]) -> float | None:
    """Agreement beyond chance of two annotators, on what both have rated (Cohen 1960); None with more or fewer.

    None, too, where that is nothing, or all of it was given one label.
    """
    shared = _rated_by_several(ratings)
    asked = len({each.annotator for each in ratings}) == 2 and len({each.label for each in shared}) > 1
    return float(AnnotationTask(shared).kappa()) if asked else None


def _rated_by_several(ratings: Sequence[Rating]) -> list[Rating]:
    count = Counter(each.item for each in ratings)
    return [each for each in ratings if count[each.item] > 1]
