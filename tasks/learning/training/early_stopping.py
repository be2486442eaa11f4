"""Early stopping: a loss is measured between steps, and the weights of its minimum are what training gives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tasks.learning.sharding import trainable_weights
from tasks.learning.training.sharded_state import MODEL, Copies

STATE = "early_stopping"


class EarlyStopping:
    """Measures a loss every so many steps, remembers the best weights, and ends training that no longer improves."""

    def __init__(self, model: nn.Module, measured_loss: Callable[[], float], *, every: int, patience: int) -> None:
        """Prepare to measure.

        Args:
            model: whose trainable weights are remembered on the CPU, of a sharded one each rank's own shards.
            measured_loss: computes the loss of the model as it is; all ranks call it.
            every: steps between two evaluations; one is before the first step and one after the last.
            patience: evaluations in a row without a new minimum, after which training ends.
        """
        self._model, self._measured_loss, self._every, self._patience = model, measured_loss, every, patience
        self.evaluations: list[dict[str, float]] = []  # step and loss
        self._best: dict[str, Tensor] = {}

    @property
    def state(self) -> Mapping[str, Any]:
        """The evaluations so far."""
        return {STATE: [*self.evaluations]}

    @property
    def copies(self) -> Copies:
        """The best weights."""
        return {MODEL: self._best}

    def restore(self, state: Mapping[str, Any], copies: Copies) -> None:
        """Take the state of a checkpoint back."""
        self.evaluations, self._best = list(state.get(STATE, ())), dict(copies.get(MODEL, {}))

    def at_step(self, step: int, num_steps: int) -> bool:
        """Evaluate if it is time; says whether training ends."""
        if step % self._every and step != num_steps:
            return False
        loss = self._measured_loss()
        if not self.evaluations or loss < self.evaluations[self._best_place]["loss"]:
            weights = trainable_weights(self._model)
            self._best = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        self.evaluations.append({"step": step, "loss": loss})
        return len(self.evaluations) - 1 - self._best_place >= self._patience

    @torch.no_grad()
    def restore_best(self) -> dict[str, Any]:
        """Give the model its best weights back; returns the evaluations and the best step, for metrics."""
        for name, weight in trainable_weights(self._model).items():
            weight.copy_(self._best[name].to(weight.device))
        return {"best_step": self.evaluations[self._best_place]["step"], "evaluations": self.evaluations}

    @property
    def _best_place(self) -> int:
        return min(range(len(self.evaluations)), key=lambda place: self.evaluations[place]["loss"])
