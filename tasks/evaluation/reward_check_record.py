"""The layout of metrics/reward_check.json: how rewards score perturbed answers beside references."""

from tasks.common.files import METRICS
from tasks.common.record import Record
from tasks.evaluation.schema import IntervalFigure

REWARD_CHECK = METRICS / "reward_check.json"
# Kinds of answers (tasks/rewards/perturbations.py) in words.
KINDS = {
    "other_reference": "another prompt's reference",
    "empty": "an empty answer",
    "prompt": "the prompt repeated",
    "padding": "padding words",
    "half": "half of the reference",
    "sentinel": '"The answer is correct."',
}


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
    weighted_sum: RewardPerturbations | None  # as `rewards.combine` says; None: there was no prompt to check
    rewards: dict[str, RewardPerturbations]
