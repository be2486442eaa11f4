"""The loss of a reward model with the terms of the settings."""

from torch import Tensor

from tasks.learning.maths.pairs import PairValues, reward_loss
from tasks.settings.params import Reward


def loss_of(scores: PairValues, pair_count: int, settings: Reward) -> Tensor:
    """The loss of scored pairs with the terms of the settings, as their part of the mean over `pair_count` pairs."""
    return reward_loss(
        scores,
        pair_count,
        margin=settings.margin,
        centering=settings.centering,
        label_smoothing=settings.label_smoothing,
    )
