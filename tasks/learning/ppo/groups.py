"""The groups of answers to one prompt: whether their rewards vary, and the sampling that replaces those that do not."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.learning.sampling.sampler import Response

# Of scores that are alike. The reward model's of two equal answers may differ by rounding.
LARGEST_ROUNDING = 1e-5


class Round(NamedTuple):
    """A round of sampling in an iteration."""

    number: int  # from 0
    skipped: int  # prompts of the iteration that earlier rounds have drawn
    num_prompts: int  # to answer


class Scored(NamedTuple):
    """Responses, those to one prompt neighbours, and what they earn."""

    responses: list[Response]
    scores: Mapping[str, Tensor]  # (B,) of each reward
    learned: Tensor  # (B,) what would be learned from


class Sampled(NamedTuple):
    """What an iteration learns from, and what it was chosen from."""

    responses: list[Response]
    scores: dict[str, Tensor]  # (B,) of each reward
    num_prompts: int  # answered
    num_uniform: int  # of them, prompts whose answers all earn the same


def do_vary(scores: Tensor, responses: int) -> Tensor:
    """Whether the scores (B,) of each group of `responses` neighbours vary, (B / responses,) bool."""
    groups = scores.view(-1, responses)
    return groups.amax(dim=1) - groups.amin(dim=1) > LARGEST_ROUNDING


def sample_dynamically(
    sample: Callable[[Round], Scored], num_prompts: int, responses: int, extra_rounds: int
) -> Sampled:
    """Sample groups, and replace those whose rewards do not vary (dynamic sampling: Yu et al. 2025, section 3.2).

    Their advantages are 0. Where groups are missing after the last round, those drawn first fill the places, so that an
    iteration always has as many answers.

    Args:
        sample: answers and scores the prompts of a round.
        num_prompts: groups wanted.
        responses: in each.
        extra_rounds: at most so many rounds follow the first. 0 replaces nothing.
    """
    varied, uniform, asked = list[Scored](), list[Scored](), 0
    for number in range(extra_rounds + 1):
        if not (missing := num_prompts - len(varied)):
            break
        found = sample(Round(number, asked, missing))
        asked += missing
        for group, varies in zip(_groups(found, responses), do_vary(found.learned, responses).tolist(), strict=True):
            (varied if varies else uniform).append(group)
    if not extra_rounds:  # in the order in which they were drawn
        return Sampled(found.responses, dict(found.scores), asked, len(uniform))
    return _concatenated([*varied, *uniform[: num_prompts - len(varied)]], asked, len(uniform))


def _groups(found: Scored, responses: int) -> list[Scored]:
    parts = [slice(start, start + responses) for start in range(0, len(found.responses), responses)]
    return [
        Scored(found.responses[part], {name: each[part] for name, each in found.scores.items()}, found.learned[part])
        for part in parts
    ]


def _concatenated(groups: Sequence[Scored], asked: int, uniform: int) -> Sampled:
    scores = {name: torch.cat([group.scores[name] for group in groups]) for name in groups[0].scores}
    return Sampled([each for group in groups for each in group.responses], scores, asked, uniform)
