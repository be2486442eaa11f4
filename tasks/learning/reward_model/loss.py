"""The loss of a reward model with the terms of the settings, and what each pair counts in it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.common.files import VALIDATED
from tasks.data.records import Split, read_pair_weights
from tasks.learning.maths.pairs import PairValues, reward_loss
from tasks.settings.params import Reward


class PairTerms(NamedTuple):
    """What N pairs of training say beside their answers."""

    weights: Tensor  # (N,)
    strengths: Tensor  # (N,) by how much the chosen answer is better; 0 where nobody says

    def take(self, places: Sequence[int]) -> "PairTerms":
        """Give the terms of some of the pairs."""
        return PairTerms(self.weights[list(places)], self.strengths[list(places)])

    def to(self, device: torch.device) -> "PairTerms":
        """Give the terms on a device."""
        return PairTerms(self.weights.to(device), self.strengths.to(device))


def pair_terms(split: Split) -> PairTerms:
    """Read the terms of a split's pairs; they are on the CPU.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    found = read_pair_weights(VALIDATED, split)
    return PairTerms(torch.tensor(found.weights), torch.tensor(found.strengths))


def loss_of(scores: PairValues, total_weight: float, settings: Reward, terms: PairTerms | None = None) -> Tensor:
    """The loss of scored pairs with the terms of the settings, as their part of the mean over a step.

    Args:
        scores: of the two answers of each pair.
        total_weight: what the pairs of the whole step weigh.
        settings: of the loss.
        terms: of the pairs; None: each counts 1 and is as strong as any.
    """
    return reward_loss(
        scores,
        total_weight,
        margin=settings.margin if terms is None else settings.margin + settings.strength_margin * terms.strengths,
        centering=settings.centering,
        label_smoothing=settings.label_smoothing,
        weights=None if terms is None else terms.weights,
    )
