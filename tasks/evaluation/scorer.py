"""Scoring answers by every reward."""

from collections.abc import Sequence
from typing import NamedTuple

from tasks.evaluation.scores import Scores
from tasks.rewards.answered import Answered, Reward


class Scorer(NamedTuple):
    """The rewards that score answers."""

    training: Sequence[tuple[float, Reward]]  # with their weights
    held_out: Reward | None
    ground_truth: Sequence[Reward]

    def __call__(self, answered: Answered) -> Scores:
        """Score n answers by every reward.

        Raises:
            InputError: a reward function fails.
        """
        components = {reward.name: reward(answered) for _, reward in self.training}
        weighted = [[weight * score for score in components[reward.name]] for weight, reward in self.training]
        return Scores(
            [sum(parts) for parts in zip(*weighted, strict=True)],
            components,
            self.held_out(answered) if self.held_out else None,
            {reward.name: reward(answered) for reward in self.ground_truth},
        )
