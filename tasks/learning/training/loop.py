"""What every trainer does around its steps: resume, log the curve, save checkpoints, answer at evaluation points."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from tasks.learning import processes
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.curves import Curve, Log
from tasks.learning.training.optimisation import check_finite
from tasks.learning.training.sharded_state import Copies


class StepCallback(Protocol):
    """Is called between steps, and has a state that checkpoints save."""

    @property
    def state(self) -> Mapping[str, Any]:
        """What a checkpoint saves of it: plain data."""

    @property
    def copies(self) -> Copies:
        """The weights of another step that a checkpoint saves for it."""

    def restore(self, state: Mapping[str, Any], copies: Copies) -> None:
        """Take the state of a checkpoint back."""

    def at_step(self, step: int, num_steps: int) -> bool | None:
        """Look at the model after `step` of `num_steps` steps; True ends the training."""


class TrainingLoop:
    """The steps of a trainer from its last checkpoint on, with curve, checkpoints and callback.

        with loop:
            for step in loop.steps():
                ...
                loop.record(step, metrics)

    A block that is left by Ctrl-C or SIGTERM saves the last step, if the weights are still as that step left them.
    """

    def __init__(
        self, stage: str, num_steps: int, checkpoints: Checkpoints, log: Log, callback: StepCallback | None = None
    ) -> None:
        """Prepare the steps.

        Args:
            stage: names the progress bar.
            num_steps: of the whole training.
            checkpoints: of the models and optimisers that the steps change.
            log: where the curve goes besides its file.
            callback: called before every step and after the last.
        """
        self._stage, self._log, self._callback, self._checkpoints = stage, log, callback, checkpoints
        self.num_steps = num_steps
        self.state: dict[str, Any] = {}  # what the trainer carries from step to step, besides models and optimisers

    def __enter__(self) -> Self:
        """Watch for interrupts."""
        self._checkpoints.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save the last step where training is interrupted."""
        self._checkpoints.__exit__(kind, error, trace)

    def steps(self) -> Iterator[int]:
        """Resume from the last checkpoint, or begin, and yield the number of every step to come."""
        done = self._checkpoints.restore()
        self.curve = Curve(self._stage, self.num_steps, self._log, done.rows)
        self.state = dict(done.extra)
        if self._callback:
            self._callback.restore(done.extra, done.copies)
        for step in range(done.step + 1, self.num_steps + 1):
            if self._call(step - 1):
                return
            yield step
        self._call(self.num_steps)

    def record(self, step: int, metrics: Mapping[str, float], *shown: str) -> None:
        """End a step: add its metrics to the curve, and save a checkpoint if one is due.

        The metrics named in `shown` stand beside the progress bar.
        """
        self.curve.add(step, metrics, *shown)
        extra = {**self.state, **(self._callback.state if self._callback else {})}
        copies = self._callback.copies if self._callback else {}
        self._checkpoints.save(Progress(step, self.curve.rows, extra, copies), final=step == self.num_steps)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stop where a metric is not finite.

        Raises:
            InputError: naming the step, the first such metric and the last checkpoint.
        """
        check_finite(step, metrics, self.last_checkpoint)

    @property
    def last_checkpoint(self) -> str:
        """Say which checkpoint is saved, and where."""
        return self._checkpoints.last_saved

    def finish(self) -> None:
        """Delete the checkpoints, once the outputs of the stage are written; only the main process does."""
        if processes.is_main():
            self._checkpoints.finish()

    def _call(self, step: int) -> bool:
        return bool(self._callback and self._callback.at_step(step, self.num_steps))
