"""What sft, reward and dpo share around their losses: rows, their order, the update, the curve, the checkpoints."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from tasks.common.errors import InputError, is_out_of_memory
from tasks.learning import processes
from tasks.learning.batches import steps_in, training_batches
from tasks.learning.processes import Pass
from tasks.learning.sharding import shard
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.curves import Curve, Run
from tasks.learning.training.interrupts import put_off
from tasks.learning.training.micro_batches import Budget
from tasks.learning.training.optimisation import adamw, check_finite, learning_rate, make_accelerator, update
from tasks.settings.fingerprint import Origin
from tasks.settings.params import Params, Training

Rows = TypeVar("Rows", bound=Sized)


def require_rows(rows: Rows, file: Path, split: str) -> Rows:
    """Give the rows back.

    Raises:
        InputError: there are none.
    """
    if not rows:
        cure = "give more rows, or raise its share in params.yaml, prepare.split"
        raise InputError(f"{file} has no row in the {split} split: {cure}")
    return rows


class Visitor(Protocol):
    """Looks at the model between steps, and has something to carry in the checkpoints."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """What a checkpoint is to hold of it."""

    def restore(self, extra: Mapping[str, Any]) -> None:
        """Take that back."""

    def visit(self, step: int, steps: int) -> None:
        """Look at the model after so many of all steps."""


class Fit:
    """One run of a supervised trainer: its steps, from where a checkpoint stopped, and what is done at each.

        for step, items, groups in fit.steps():
            with fit.attempt(step):
                for indices in groups:
                    fit.backward({"loss": loss_of(indices)})

    `items` are those of the whole step, whose count losses are divided by; `groups` those that this process works on.
    It knows nothing of losses and calls nothing back. A step that runs out of memory comes again, in smaller groups.
    """

    def __init__(
        self,
        stage: str,
        origin: Origin,
        model: nn.Module,
        lengths: Sequence[int],
        *,
        params: Params,
        settings: Training,
        run: Run,
        epsilon: float = 1e-5,
        visitor: Visitor | None = None,
    ) -> None:
        """Prepare to train.

        Args:
            stage: names checkpoints and progress bar.
            origin: what the stage's result follows from.
            model: its trainable weights are optimised; sharded, where that was asked for.
            lengths: tokens of each item of the training data: a row, or a pair of rows, each as long as the longer.
            params: seed and runtime.
            settings: epochs, batch size, learning rate and so on.
            run: where the curve goes besides its file.
            epsilon: AdamW's.
            visitor: comes before every step and after the last.
        """
        shard(model)
        self._stage, self._model, self._lengths, self._settings, self._run = stage, model, lengths, settings, run
        self._seed, self._visitor = params.seed, visitor
        self._budget = Budget(params.runtime.max_tokens_per_micro_batch)
        self._accelerator = make_accelerator(params)
        self._optimiser = adamw(model, weight_decay=settings.weight_decay, epsilon=epsilon)
        self._checkpoints = Checkpoints(stage, origin, params.runtime, {"model": model}, {"model": self._optimiser})
        self._count = steps_in(len(lengths), settings.batch_size, settings.epochs)
        self._sums: dict[str, float] = {}

    def first_epoch(self) -> Iterator[list[int]]:
        """Give every item of this process's share once, in the very groups of the first epoch."""
        for _, indices in training_batches(len(self._lengths), self._settings.batch_size, 1, self._seed):
            yield from (each.items for each in self._passes_of(indices) if each.weight)

    def steps(self) -> Iterator[tuple[int, list[int], list[list[int]]]]:
        """Take up training from the last checkpoint, or begin: give each step's number, its items and the groups."""
        with self._checkpoints:
            done = self._checkpoints.restore()
            self.curve = Curve(self._stage, self._count, self._run, done.rows)
            if self._visitor:
                self._visitor.restore(done.extra)
            settings = self._settings
            for step, indices in training_batches(
                len(self._lengths), settings.batch_size, settings.epochs, self._seed, done.step
            ):
                self._visit(step - 1)
                self._is_done = False
                while not self._is_done:
                    self._sums, self._passes = {}, self._passes_of(indices)
                    self._weights = iter([each.weight for each in self._passes])
                    yield step, indices, [each.items for each in self._passes]
            self._visit(self._count)

    @contextmanager
    def attempt(self, step: int) -> Iterator[None]:
        """Take the step for which the block computes the gradients, then note its metrics and save if it is time to.

        Where the block runs out of memory nothing is taken, and `steps` gives the same items in smaller groups. Where
        it is interrupted the step before is saved.

        Raises:
            InputError: the loss or its gradient is not finite (the weights and the last checkpoint are untouched), or
                memory does not suffice for a single item.
        """
        with self._checkpoints:
            try:
                yield
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._optimiser.zero_grad()
                self._budget.halve(self._passes)
            else:
                with put_off():
                    self._update(step)
                self._is_done = True

    def autocast(self) -> AbstractContextManager[None]:
        """Run the model's matrix products in the precision of the settings."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def backward(self, parts: Mapping[str, Tensor]) -> None:
        """Add the gradient of parts["loss"] to the step's, and every part to the step's metric of that name.

        To be called once for each of the step's groups, in their order.
        """
        weight = next(self._weights)
        self._accelerator.backward(weight * parts["loss"])
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * part.item()

    def _passes_of(self, indices: Sequence[int]) -> list[Pass]:
        return processes.passes(indices, self._lengths, self._budget.tokens)

    def _update(self, step: int) -> None:
        settings = self._settings
        rate = learning_rate(step, self._count, settings.learning_rate, settings.schedule, settings.warmup_ratio)
        sums = processes.summed(self._sums)
        norm = update(
            self._accelerator,
            self._model,
            self._optimiser,
            step=step,
            loss=sums["loss"],
            learning_rate=rate,
            max_grad_norm=settings.max_grad_norm,
            kept=self._checkpoints.kept,
        )
        self.curve.add(step, {**sums, "grad_norm": norm, "learning_rate": rate}, "loss")
        extra = self._visitor.extra if self._visitor else {}
        self._checkpoints.save(Progress(step, self.curve.rows, extra), final=step == self._count)

    def _visit(self, step: int) -> None:
        if self._visitor:
            self._visitor.visit(step, self._count)

    def check(self, figures: Mapping[str, float]) -> None:
        """Stop where what was measured after the last step is no number: no later loss would tell.

        Raises:
            InputError: naming the first such figure.
        """
        check_finite(self._count, figures, self._checkpoints.kept)

    def summary(self) -> dict[str, float]:
        """Give the figures every trainer reports: steps, and the loss of the last one."""
        return {"steps": len(self.curve.rows), "training_loss": self.curve.rows[-1]["loss"]}

    def finish(self) -> None:
        """Forget the checkpoints: what the stage writes is written."""
        if processes.is_first():
            self._checkpoints.finish()
