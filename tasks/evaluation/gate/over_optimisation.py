"""The check for over-optimisation: the final policy against each earlier evaluation point of its training."""

from collections.abc import Iterator
from typing import NamedTuple

from tasks.evaluation.figures import reward_words
from tasks.evaluation.gate.check import Bounds, Check, Evidence, at_most, bounds, not_computed
from tasks.evaluation.schema import PointFigures
from tasks.evaluation.scores import TRAINING, independent_rewards

NAME, WORDS = "over_optimisation", "Over-optimised evaluation points"


class Since(NamedTuple):
    """The win rates of the final policy over the policy at an earlier evaluation point."""

    step: int
    reward: str  # the name of the independent one
    training: Bounds  # by the training reward
    independent: Bounds  # by a reward that nothing was trained on
    is_over_optimised: bool  # significantly better by the one and significantly worse by the other


def over_optimisation(evidence: Evidence, threshold: int) -> Check | None:
    """Count the evaluation points that the final policy beats by the training reward and loses to by another.

    The other is the held-out reward model, or, where there is none, each ground-truth reward. None without either,
    and where the training had no evaluation points.
    """
    evaluation = evidence.evaluation
    if (evaluation.held_out is None and not evaluation.ground_truth) or not evaluation.over_optimisation:
        return None
    earlier = evaluation.over_optimisation[:-1]
    found = [since for point in earlier for since in _comparisons(point)]
    known = [since for since in found if since]
    if not known or len(known) < len(found):
        return not_computed(NAME, WORDS, threshold)
    over_optimised = [since for since in known if since.is_over_optimised]
    count = len({since.step for since in over_optimised})
    worst = min(over_optimised or known, key=lambda since: since.independent.high)
    rates = f"{worst.training} by the training reward and {worst.independent} by {reward_words(worst.reward)}"
    details = f"Over the policy at step {worst.step}, the final policy wins {rates}."
    if not over_optimised:
        other = reward_words(worst.reward) if len({since.reward for since in known}) == 1 else "a ground-truth reward"
        details = (
            f"No over-optimisation: at none of {len(earlier)} evaluation points is the final policy significantly "
            f"better by the training reward and significantly worse by {other}. {details}"
        )
    return at_most(NAME, WORDS, count, threshold, details=details, digits=0)


def _comparisons(point: PointFigures) -> Iterator[Since | None]:
    """By each independent reward; None where an interval could not be computed."""
    rates = point.last_over_this or {}
    training = bounds(rates.get(TRAINING))
    for name in independent_rewards(rates):
        independent = bounds(rates.get(name))
        if training is None or independent is None:
            yield None
            continue
        conclusions = rates[TRAINING].conclusion, rates[name].conclusion
        yield Since(point.step, name, training, independent, conclusions == ("better", "worse"))
