"""Whether a reward mainly punishes answers that the limit cuts: a policy then learns to end early, and little else."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, pstdev, variance
from typing import NamedTuple

LEAST_SHARE = 0.05  # of answers that are cut: fewer move a policy little
LEAST_COUNT = 5  # of cut answers, and of others: fewer have no variance to speak of
LARGE = 1.0  # deviations
CONFIDENCE = 0.95


class CutAnswers(NamedTuple):
    """How a reward scores a model's cut answers, beside those that end."""

    share: float  # of answers that are cut
    gap: float  # mean score of those that end minus that of cut ones, in standard deviations of all scores
    low: float
    high: float

    @property
    def is_large(self) -> bool:
        """Whether the gap surely exceeds a standard deviation."""
        return self.low > LARGE


def cut_answers(scores: Sequence[float], ended: Sequence[bool]) -> CutAnswers | None:
    """Compare the scores of n answers that ended by themselves with those of the others.

    The interval is that of a difference of two means with one variance. The deviation that divides it counts as known.

    Args:
        scores: n, by the training reward, before penalties.
        ended: n.

    Returns:
        None where there are too few of either kind, or all scores are equal.
    """
    finished = [score for score, has_ended in zip(scores, ended, strict=True) if has_ended]
    cut = [score for score, has_ended in zip(scores, ended, strict=True) if not has_ended]
    if min(len(finished), len(cut)) < LEAST_COUNT or len(cut) < LEAST_SHARE * len(scores):
        return None
    deviation = pstdev(scores)
    if not deviation:
        return None
    pooled = (variance(finished) * (len(finished) - 1) + variance(cut) * (len(cut) - 1)) / (len(scores) - 2)
    error = sqrt(pooled * (1 / len(finished) + 1 / len(cut))) / deviation
    gap, width = (fmean(finished) - fmean(cut)) / deviation, NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return CutAnswers(len(cut) / len(scores), gap, gap - width, gap + width)


def cut_answers_sentence(found: CutAnswers, limit: str) -> str:
    """Say what a large gap means, and what helps.

    Args:
        found: of the SFT model's answers.
        limit: the setting that cut them.
    """
    return (
        f"The training reward mainly punishes answers that {limit} cuts: of the SFT model's answers {found.share:.2f} "
        f"are cut, and these score {found.gap:.2f} [{found.low:.2f}, {found.high:.2f}] standard deviations below the "
        "others. A policy gains by ending early alone. Raise max_new_tokens, train the reward model's layers where "
        "only its head is fitted (reward.epochs), or set ppo.overlong to mask."
    )
