"""How rewards score perturbed answers beside references."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.evaluation.compare import Resampling, bootstrap_interval
from tasks.evaluation.reward_check_record import PerturbationFigures, RewardPerturbations
from tasks.evaluation.schema import IntervalFigure

NO_GAIN = 1e-6  # differences of rounding


class Scored(NamedTuple):
    """Scores of the answers of one kind: of those of n prompts that have such an answer."""

    places: Sequence[int]  # of the prompts
    scores: Sequence[float]


def perturbation_figures(
    references: Sequence[float], perturbed: Mapping[str, Scored], resampling: Resampling
) -> RewardPerturbations:
    """Compare scores of perturbed answers with those of n references.

    Args:
        references: n scores.
        perturbed: by kind of perturbation.
        resampling: how intervals are drawn.
    """
    best = max(references) - NO_GAIN

    def full(scores: Sequence[float]) -> float:
        return float(np.mean([score >= best for score in scores]))

    def figures(found: Scored) -> PerturbationFigures:
        differences = [references[place] - score for place, score in zip(found.places, found.scores, strict=True)]
        interval = bootstrap_interval(differences, resampling.at(found.places))
        return PerturbationFigures(
            answers=len(differences),
            mean=float(np.mean(found.scores)),
            full_marks=full(found.scores),
            difference=IntervalFigure(**interval._asdict()),
            separated=interval.low > NO_GAIN,
        )

    return RewardPerturbations(
        mean=float(np.mean(references)),
        full_marks=full(references),
        perturbations={kind: figures(found) for kind, found in perturbed.items() if found.places},
    )


def satisfied_by(figures: RewardPerturbations, kinds: Sequence[str]) -> list[str]:
    """Name the kinds of answers, of some, that are scored as high as references on average."""
    found = figures.perturbations
    return [kind for kind in kinds if kind in found and (found[kind].difference.value or 0.0) <= NO_GAIN]
