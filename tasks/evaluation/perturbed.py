"""How rewards score perturbed answers beside references: metrics/reward_check.json."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.common.files import METRICS
from tasks.evaluation.compare import Resampling, bootstrap_interval
from tasks.evaluation.record import Record
from tasks.evaluation.schema import IntervalFigure

REWARD_CHECK = METRICS / "reward_check.json"
NO_GAIN = 1e-6  # differences of rounding


class PerturbationFigures(Record):
    """Scores of answers that were perturbed in one way."""

    answers: int
    mean: float
    full_marks: float  # share of answers that reach the best reference's score
    difference: IntervalFigure  # reference minus perturbed answer, by prompt
    separated: bool  # the interval lies above 0


class RewardPerturbations(Record):
    """Scores that a reward, or all together, give to references and perturbed answers."""

    mean: float  # of references
    full_marks: float
    perturbations: dict[str, PerturbationFigures]


class RewardCheck(Record):
    """metrics/reward_check.json: what is learned from, and what was checked of it."""

    learned_from: bool  # whether the reward model is
    functions: list[str]  # what is learned from besides
    prompts: int  # that have references, and were checked
    without_references: int  # prompts of which nothing could be checked
    weighted_sum: RewardPerturbations | None  # None: there was no prompt to check
    rewards: dict[str, RewardPerturbations]


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
