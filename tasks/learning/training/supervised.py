"""The training loop of sft, the reward models and dpo: they supply the losses, it does the rest."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from tasks.common.errors import is_out_of_memory
from tasks.learning import processes
from tasks.learning.batches import steps_in, training_batches
from tasks.learning.models.loading import score_head
from tasks.learning.processes import MicroBatch
from tasks.learning.sharding import shard
from tasks.learning.training.checkpoints import Checkpoints
from tasks.learning.training.curves import Curve, Log
from tasks.learning.training.gradients import GradientSums
from tasks.learning.training.interrupts import delayed_interrupts
from tasks.learning.training.loop import StepCallback, TrainingLoop
from tasks.learning.training.micro_batches import MicroBatchLimit
from tasks.learning.training.optimisation import LossSums, adamw, learning_rate, make_accelerator, update
from tasks.learning.training.sharded_state import MODEL
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import Params, Training


class SupervisedTrainer:
    """Trains a model on rows or pairs in shuffled epochs, from the last checkpoint on.

        for step in trainer.steps():
            with step.attempt():
                for micro_batch in step.micro_batches:
                    loss = loss_of(micro_batch.items) / len(step.items)
                    step.backward(micro_batch, {"loss": loss})

    The loop yields; the caller computes losses. Between steps the callback is called, if there is one.
    """

    def __init__(
        self,
        stage: str,
        fingerprint: Fingerprint,
        model: nn.Module,
        lengths: Sequence[int],
        *,
        params: Params,
        settings: Training,
        run: Log,
        epsilon: float = 1e-5,
        head_learning_rate: float | None = None,
        callback: StepCallback | None = None,
    ) -> None:
        """Prepare to train.

        Args:
            stage: names checkpoints and progress bar.
            fingerprint: fingerprint of what the stage's result follows from.
            model: its trainable weights are optimised; sharded under FSDP.
            lengths: tokens of each item of the training data: a row, or a pair of rows, each as long as the longer.
            params: seed and runtime.
            settings: epochs, batch size, learning rate and so on.
            run: where the curve goes besides its file.
            epsilon: AdamW's.
            head_learning_rate: peak of the scalar head's; None: that of the settings.
            callback: called before every step and after the last.
        """
        shard(model)
        self._model, self._lengths, self._settings, self._seed = model, lengths, settings, params.seed
        self._limit = MicroBatchLimit(params.runtime.max_tokens_per_micro_batch)
        self._accelerator, self._gradients = make_accelerator(params), GradientSums(model.parameters())
        head = None if head_learning_rate is None else score_head(model)
        factor = 1.0 if head_learning_rate is None else head_learning_rate / settings.learning_rate
        self._optimiser = adamw(
            model,
            weight_decay=settings.weight_decay,
            epsilon=epsilon,
            head=head,
            head_factor=factor,
            moments=params.runtime.optimiser,
            seed=params.seed,
        )
        checkpoints = Checkpoints(stage, fingerprint, params.runtime, {MODEL: model}, {MODEL: self._optimiser})
        num_steps = steps_in(len(lengths), settings.batch_size, settings.epochs)
        self._loop = TrainingLoop(stage, num_steps, checkpoints, run, callback)

    def first_epoch(self) -> Iterator[MicroBatch]:
        """Yield every item of this rank's share once, in the micro-batches of the first epoch."""
        for _, indices in training_batches(len(self._lengths), self._settings.batch_size, 1, self._seed):
            yield from self._limit.split(indices, self._lengths)

    def steps(self) -> Iterator["TrainingStep"]:
        """Resume from the last checkpoint, or begin, and yield the steps to come.

        A step that ran out of memory is yielded again, in smaller micro-batches.

        Raises:
            RuntimeError: a step was not attempted.
        """
        settings, batches = self._settings, None
        with self._loop:
            for number in self._loop.steps():
                if batches is None:
                    batches = training_batches(
                        len(self._lengths), settings.batch_size, settings.epochs, self._seed, done=number - 1
                    )
                _, items = next(batches)
                is_taken = False
                while not is_taken:
                    step = TrainingStep(self, number, items, self._limit.split(items, self._lengths))
                    yield step
                    if not step.was_attempted:
                        raise RuntimeError(f"step {number} was not attempted")
                    is_taken = step.is_taken

    def summed(self, items: Sequence[int], work: Callable[[Sequence[MicroBatch]], Tensor]) -> Tensor:
        """Sum up something of a step's items before its gradient is taken, in micro-batches and over all processes.

        Args:
            items: of all processes.
            work: gives this rank's part, of its micro-batches; called again where memory does not suffice.
        """
        total = self._limit.run(items, self._lengths, work)
        processes.all_reduce(total)
        return total

    def check(self, metrics: Mapping[str, float]) -> None:
        """Stop where what was measured after the last step is not finite: no later loss would show it.

        Raises:
            InputError: naming the first such metric.
        """
        self._loop.check(self._loop.num_steps, metrics)

    @property
    def curve(self) -> Curve:
        """The metrics of every step so far."""
        return self._loop.curve

    def summary(self) -> dict[str, float]:
        """Give the metrics every trainer reports: steps, and the loss of the last one if there was any."""
        rows = self.curve.rows
        return {"steps": len(rows), **({"training_loss": rows[-1]["loss"]} if rows else {})}

    def finish(self) -> None:
        """Delete the checkpoints, once the outputs of the stage are written."""
        self._loop.finish()


class TrainingStep:
    """One optimiser step: the items it learns from, and the micro-batches of this rank."""

    def __init__(
        self, trainer: SupervisedTrainer, number: int, items: Sequence[int], micro_batches: Sequence[MicroBatch]
    ) -> None:
        """Describe a step.

        Args:
            trainer: whose step it is.
            number: from 1.
            items: indices of all processes' items, by whose count losses are divided.
            micro_batches: this rank's share of them.
        """
        self.number, self.items, self.micro_batches = number, items, micro_batches
        self.was_attempted = self.is_taken = False
        self._trainer, self._pending = trainer, list(micro_batches)
        self._sums = LossSums(trainer._accelerator, trainer._gradients)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Compute the gradients in the block; then the optimiser steps, metrics are logged and a checkpoint is saved.

        If the block runs out of memory, no step is taken, and the trainer yields the items again in smaller
        micro-batches. If it is interrupted, the step before is saved.

        Raises:
            InputError: the loss or its gradient is not finite (the weights and the last checkpoint are untouched), or
                memory does not suffice for a single item.
            RuntimeError: the block left out a micro-batch.
        """
        self.was_attempted, trainer = True, self._trainer
        with trainer._loop:
            try:
                yield
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                trainer._optimiser.zero_grad()
                trainer._limit.halve(self.micro_batches)
                return
            if self._pending:
                raise RuntimeError(f"step {self.number}: {len(self._pending)} micro-batches had no backward pass")
            with delayed_interrupts():
                self._take()
            self.is_taken = True

    def backward(self, micro_batch: MicroBatch, losses: Mapping[str, Tensor]) -> None:
        """Add the gradient of losses["loss"] to the step's, and every entry to the step's metric of that name.

        Args:
            micro_batch: the losses are of its items; each takes one backward pass.
            losses: scalars, divided by the counts of the whole step.

        Raises:
            RuntimeError: the micro-batch is none of this step, or had its backward pass.
        """
        if micro_batch not in self._pending:
            raise RuntimeError(f"step {self.number}: a micro-batch had two backward passes, or is of another step")
        self._pending.remove(micro_batch)
        self._sums.backward(losses, micro_batch.weight, is_last=not self._pending)

    def _take(self) -> None:
        trainer, settings, loop = self._trainer, self._trainer._settings, self._trainer._loop
        rate = learning_rate(
            self.number, loop.num_steps, settings.learning_rate, settings.schedule, settings.warmup_ratio
        )
        metrics = self._sums.over_ranks()
        norm = update(
            trainer._accelerator,
            trainer._model,
            trainer._optimiser,
            step=self.number,
            loss=metrics["loss"],
            learning_rate=rate,
            max_grad_norm=settings.max_grad_norm,
            last_checkpoint=loop.last_checkpoint,
        )
        loop.record(self.number, {**metrics, "grad_norm": norm, "learning_rate": rate}, "loss")
