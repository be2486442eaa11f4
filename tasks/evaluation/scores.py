"""What the rewards make of some answers: the one that is trained on, and those that nothing learns from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

TRAINING, HELD_OUT = "reward", "held_out"  # names among scores by name, where ground-truth rewards have their own
ScoresByName = Mapping[str, Sequence[float]]  # n scores, one a prompt, by the name of the reward


class Scores(NamedTuple):
    """The scores of n answers."""

    training: list[float]  # the weighted sum of `components`
    components: dict[str, list[float]]  # by each reward that is trained on
    held_out: list[float] | None  # by the held-out reward model; None: there is none
    ground_truth: dict[str, list[float]]  # by each ground-truth reward

    @property
    def by_name(self) -> dict[str, list[float]]:
        """What is compared along training: the training reward, and each reward that nothing learns from."""
        held_out = {} if self.held_out is None else {HELD_OUT: self.held_out}
        return {TRAINING: self.training, **held_out, **self.ground_truth}

    def at(self, places: Sequence[int]) -> "Scores":
        """Keep those of some answers."""
        return Scores(
            _some(self.training, places),
            {name: _some(values, places) for name, values in self.components.items()},
            None if self.held_out is None else _some(self.held_out, places),
            {name: _some(values, places) for name, values in self.ground_truth.items()},
        )


def independent_rewards(scores: Iterable[str]) -> list[str]:
    """Name the rewards that over-optimisation shows in: that of the held-out reward model, else the ground truth.

    Where there are neither, the training reward alone is left, and nothing shows it.

    Args:
        scores: the names among the scores.
    """
    names = [name for name in scores if name != TRAINING]
    return [HELD_OUT] if HELD_OUT in names else names or [TRAINING]


def in_groups(scores: ScoresByName, size: int) -> dict[str, list[Sequence[float]]]:
    """Split the scores of answers that lie side by side, `size` to a prompt."""
    return {
        name: [values[start : start + size] for start in range(0, len(values), size)] for name, values in scores.items()
    }


def _some(values: Sequence[float], places: Sequence[int]) -> list[float]:
    return [values[place] for place in places]
