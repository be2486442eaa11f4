"""What an answer without an end-of-sequence token costs, by what the SFT model's own answers earn and how they end."""

from typing import NamedTuple

from torch import Tensor

from tasks.learning.ppo.groups import LARGEST_ROUNDING


class SFTAnswers(NamedTuple):
    """What the answers of the first iteration say; the policy is the SFT model then."""

    share_ended: float  # by themselves
    score_deviation: float  # of what is learned from, before penalties; 0: all alike


def observe(known: SFTAnswers | None, scores: Tensor, has_ended: Tensor) -> SFTAnswers:
    """Take the share of an iteration's answers that ended, and the scores' deviation, where they are not known yet.

    While all answers earn the same (a task that the SFT model never solves), the deviation is that of a later
    iteration.

    Args:
        known: from earlier iterations; None: this is the first.
        scores: (B,) of all ranks' answers, combined and clipped.
        has_ended: (B,) bool.
    """
    share_ended, deviation = known or (has_ended.float().mean().item(), 0.0)
    if not deviation and (scores.amax() - scores.amin()).item() > LARGEST_ROUNDING:
        deviation = scores.std(correction=0).item()
    return SFTAnswers(share_ended, deviation)


def missing_eos_penalty(deviations: float, answers: SFTAnswers) -> float:
    """Give what is subtracted from the score of an answer without an end, in the scores' own unit.

    The penalty is in deviations, so that it weighs as much against a reward of any scale. It is multiplied by the share
    of the SFT model's answers that end: where most are cut by max_new_tokens, a cut says nothing of the answer. Among
    the SFT model's answers, of which a share c is cut, the penalty of 1 deviates by (1 - c) sqrt(c (1 - c)) deviations,
    at most 0.33: it cannot drown the reward.

    Args:
        deviations: `ppo.missing_eos_penalty`.
        answers: of the SFT model.
    """
    # While no score differs from another there is no unit, and none is needed: the penalty is all there is to learn.
    return deviations * answers.share_ended * (answers.score_deviation or 1.0)
