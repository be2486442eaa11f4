"""The last checkpoints of a stage, so that a killed run goes on where it was and ends with the same bytes.

They lie outside DVC's outputs, and each holds what it follows from: one of other settings, data or models, or of what
DVC knows to be other code, is never taken up. Each ends with a seal, by which a damaged one is known. No random state
is stored, since everything random is a pure function of the seed and the step.
"""

import logging
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from tasks.common.errors import is_out_of_memory
from tasks.common.files import STATE, replacing
from tasks.common.full_disk import writing
from tasks.common.progress import request_grace
from tasks.learning import processes
from tasks.learning.sharding import cut_like, set_to, whole
from tasks.learning.training.sealed_files import Sealing, is_whole
from tasks.settings.fingerprint import Origin
from tasks.settings.params import Runtime

CurveRow = dict[str, float]
SECONDS_TO_SAVE = 900.0  # at most, of a large checkpoint on a slow disk
logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How far a stage had come."""

    step: int = 0  # steps done
    rows: Sequence[CurveRow] = ()  # the curve so far
    extra: Mapping[str, Any] = {}  # what else the trainer carries from step to step, as JSON can hold it


class Checkpoints:
    """Saving and restoring the weights that learn and their optimisers, by name.

        with checkpoints:
            progress = checkpoints.restore()
            ...
            checkpoints.save(progress)  # after every step

    A block that is left by Ctrl-C or SIGTERM saves the last step, if the weights are still as that step left them.
    """

    def __init__(
        self,
        stage: str,
        origin: Origin,
        runtime: Runtime,
        models: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        """Name what is saved under a stage, and what it follows from; the settings say how often, and how many stay."""
        self._folder, self._origin = STATE / "checkpoints" / stage, origin
        self._every, self._count = runtime.checkpoint_every, runtime.max_checkpoints
        self._models, self._optimisers = models, optimisers
        self._now: Progress | None = None  # what the weights are the result of; None once they have moved on
        self._kept: list[Path] = []  # of this origin, the newest last
        for optimiser in optimisers.values():
            optimiser.register_step_pre_hook(self._move_on)

    def __enter__(self) -> Self:
        """Begin training."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        """Save the last step where training is interrupted, and have the interruption tell what is kept.

        Several processes would have to save together, which those that are being ended cannot.
        """
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            return
        if self._every and self._now and processes.count() == 1 and self._file(self._now.step) not in self._kept:
            signal.alarm(0)  # of whoever interrupted: a large checkpoint may take longer than winding up does
            request_grace(SECONDS_TO_SAVE)
            self._write(self._now)
        error.add_note(self.kept)

    def restore(self) -> Progress:
        """Bring models and optimisers to where the last checkpoint was; without one, leave them as they are.

        One that is damaged, or that follows from something else, is passed over, and a warning says why.
        """
        found = sorted(self._folder.glob("step-*.pt"))
        unfit = [f"none of {len(found)} checkpoints in {self._folder} is whole"] if found else []
        while found:
            state = _read(found[-1])
            if state:
                difference = self._origin.differences(Origin(*state["origin"]))
                if not difference:
                    self._kept = found
                    return self._take_up(state)
                unfit.append(f"{found[-1]} is not taken up: {difference}")
            found.pop()
        if unfit:
            _warn("%s; training begins anew", unfit[:2][-1])  # the newest that is whole, where one is
        return Progress()

    def save(self, progress: Progress, *, final: bool = False) -> None:
        """Note that a step is done, and save it if it is one of every so many, or the final one."""
        self._now = progress
        if self._every and (final or progress.step % self._every == 0):
            self._write(progress)

    def finish(self) -> None:
        """Delete the stage's checkpoints: its outputs are written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def kept(self) -> str:
        """Say which checkpoint is kept, and where."""
        if not self._kept:
            return "no checkpoint had been saved yet"
        step = int(self._kept[-1].stem.removeprefix("step-"))
        return f"the last good checkpoint, of step {step}, is kept in {self._kept[-1]}"

    def _take_up(self, state: Mapping[str, Any]) -> Progress:
        for name, model in self._models.items():
            _load_trainable(model, state["models"][name])
        for name, optimiser in self._optimisers.items():
            _load_optimiser(optimiser, state["optimisers"][name])
        self._now = Progress(state["step"], state["rows"], state["extra"])
        return self._now

    def _write(self, progress: Progress) -> None:
        file = self._file(progress.step)
        state = {
            "origin": tuple(self._origin),
            "step": progress.step,
            "rows": [dict(row) for row in progress.rows],
            "extra": dict(progress.extra),
            "models": {name: _weights(model) for name, model in self._models.items()},
            "optimisers": {name: whole(optimiser.state_dict()) for name, optimiser in self._optimisers.items()},
        }
        if processes.is_first():
            with replacing(file) as draft, writing(file), draft.open("wb") as opened:
                sealing = Sealing(opened, _name(file))
                torch.save(state, cast("IO[bytes]", sealing))
                sealing.seal()
        self._kept = [*(each for each in self._kept if each != file), file][-self._count :]
        if processes.is_first():
            self._drop_others()

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step:08}.pt"

    def _drop_others(self) -> None:
        """Drop older checkpoints, those of another origin and what killed runs left half written."""
        for found in set(self._folder.iterdir()) - set(self._kept):
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()

    def _move_on(self, *_: object) -> None:
        """Note that an optimiser is about to move the weights."""
        self._now = None


def _read(file: Path) -> dict[str, Any] | None:
    """Give what a checkpoint holds, or None, with a warning, where it is damaged."""
    if not is_whole(file, _name(file)):
        _warn("%s is damaged (its seal does not fit) and is passed over", file)
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        Origin(*state["origin"])
    except OSError:  # of the disk, not of the archive
        raise
    except Exception as error:  # a damaged archive raises whatever its first broken byte leads to
        if is_out_of_memory(error):
            raise
        _warn("%s is damaged (%s) and is passed over", file, type(error).__name__)
        return None
    return state


def _name(file: Path) -> str:
    """Stage and step: another's checkpoint in its place is not it."""
    return f"{file.parent.name}/{file.name}"


def _warn(message: str, *words: object) -> None:
    if processes.is_first():
        logger.warning(message, *words)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in whole(_trainable(model)).items()}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _load_trainable(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, weight in _trainable(model).items():
        set_to(weight, saved[name])


def _load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    optimiser.load_state_dict(saved)
    for weight, moments in optimiser.state.items():
        for name, moment in moments.items():
            if moment.shape == weight.shape:  # not the count of steps
                moments[name] = cut_like(moment, weight)
