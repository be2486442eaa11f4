"""Reward models that were trained one after the other, measured and put on a scale as one.

The loss fixes differences of scores alone, so each member has an origin of its own: before members are compared, each
is centred on the answers that SFT learned. A model that is alone is its own ensemble, and is not centred.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from tasks.learning.maths.ensembles import ensemble_scores
from tasks.learning.models.loading import normalise_scores
from tasks.learning.reward_model.calibration import ScoredPair, accuracy_by
from tasks.learning.training.curves import Curve


class Member(NamedTuple):
    """A trained reward model and what was measured of it."""

    model: nn.Module
    curve: Curve
    figures: dict[str, Any]  # of its training: steps, the loss of the last one, and what a fit or early stopping found
    losses: dict[str, float]  # on held-out pairs: before, after
    scored: list[ScoredPair]  # test pairs, by raw scores
    demonstrated: list[float]  # raw scores of the demonstrated answers


def ensemble_pairs(members: Sequence[Member], penalty: float) -> list[ScoredPair]:
    """The test pairs by the ensemble's scores, whose margins are log-odds like those of a member alone."""
    chosen, rejected = (_combined(columns, penalty) for columns in _centred(members))
    pairs = zip(members[0].scored, chosen, rejected, strict=True)
    return [pair._replace(chosen_score=ours, rejected_score=theirs) for pair, ours, theirs in pairs]


def standardise(members: Sequence[Member], penalty: float) -> dict[str, float]:
    """Shift and scale the members so that the ensemble's scores of demonstrated answers have mean 0 and deviation 1.

    The bias is that of Huang et al. 2024: minus the mean score of the answers that SFT learned. The gain makes the KL
    coefficient of a later stage mean the same for every reward model. Both lie in the models' configs; all members have
    one gain, so that they agree or differ as they do by their raw scores.

    Returns:
        bias and gain of the first member.
    """
    centres = _centres(members)
    columns = [
        [score + centre for score in member.demonstrated] for member, centre in zip(members, centres, strict=True)
    ]
    scores = _combined(columns, penalty)
    deviation = statistics.pstdev(scores)
    bias, gain = -statistics.fmean(scores), 1 / deviation if deviation > 0 else 1.0
    for member, centre in zip(members, centres, strict=True):
        normalise_scores(member.model, centre + bias, gain)
    return {"bias": centres[0] + bias, "gain": gain}


def training_figures(members: Sequence[Member], watched: str) -> dict[str, Any]:
    """What the training took, and the loss on held-out pairs: of one model, or sums and means over all."""
    if len(members) == 1:
        return {**members[0].figures, watched: {"loss": members[0].losses}}
    losses = {when: statistics.fmean(member.losses[when] for member in members) for when in members[0].losses}
    return {"steps": sum(member.figures["steps"] for member in members), watched: {"loss": losses}}


def ensemble_figures(members: Sequence[Member], gain: float, watched: str) -> dict[str, Any]:
    """Each member's accuracy and training, and their disagreement; nothing of a model that is alone.

    The disagreement is the members' standard deviation, the mean over all test answers, on the standard scale.
    """
    if len(members) == 1:
        return {}
    deviations = [torch.tensor(columns, dtype=torch.float64).std(dim=0, correction=0) for columns in _centred(members)]
    return {
        "ensemble": {
            "disagreement": torch.cat(deviations).mean().item() * gain,
            "members": {name: _of_member(name, member, watched) for name, member in _named(members)},
        }
    }


def joined_curve(members: Sequence[Member]) -> Curve:
    """The curves of all members, one behind the other."""
    first, *others = (member.curve for member in members)
    for curve in others:
        first.extend(curve)
    return first


def _of_member(name: str, member: Member, watched: str) -> Mapping[str, Any]:
    [accuracy] = accuracy_by({name: member.scored}).values()
    return {"accuracy": accuracy, **member.figures, watched: {"loss": member.losses}}


def _named(members: Sequence[Member]) -> Iterator[tuple[str, Member]]:
    return ((str(number), member) for number, member in enumerate(members, start=1))


def _centres(members: Sequence[Member]) -> list[float]:
    return [0.0 if len(members) == 1 else -statistics.fmean(member.demonstrated) for member in members]


def _centred(members: Sequence[Member]) -> tuple[list[list[float]], list[list[float]]]:
    """Scores of the chosen and of the rejected answers, a list a member."""
    centred = list(zip(members, _centres(members), strict=True))
    return (
        [[pair.chosen_score + centre for pair in member.scored] for member, centre in centred],
        [[pair.rejected_score + centre for pair in member.scored] for member, centre in centred],
    )


def _combined(columns: Sequence[Sequence[float]], penalty: float) -> list[float]:
    found: list[float] = ensemble_scores(torch.tensor(columns, dtype=torch.float64), penalty).tolist()
    return found
