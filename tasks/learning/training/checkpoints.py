"""The last checkpoints of a stage, so that a killed run goes on where it was and ends with the same bytes.

They lie outside DVC's outputs. Each holds the fingerprint of what it follows from: training never resumes from one of
other settings, data, models or code. Each ends with a checksum, to detect damage. No random state is saved: what is
random is a pure function of the seed and the step.
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
from tasks.learning.sharding import full_tensors, set_full_value, shard_like
from tasks.learning.training.checksums import ChecksumWriter, is_intact
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import Runtime

CurveRow = dict[str, float]
SECONDS_TO_SAVE = 900.0  # at most, of a large checkpoint on a slow disk
logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How far a stage had come."""

    step: int = 0  # steps done
    rows: Sequence[CurveRow] = ()  # the curve so far
    extra: Mapping[str, Any] = {}  # what else the trainer carries from step to step: plain data and tensors


class Checkpoints:
    """Saving and restoring trainable weights and their optimisers, by name.

        with checkpoints:
            progress = checkpoints.restore()
            ...
            checkpoints.save(progress)  # after every step

    A block that is left by Ctrl-C or SIGTERM saves the last step, if the weights are still as that step left them.
    """

    def __init__(
        self,
        stage: str,
        fingerprint: Fingerprint,
        runtime: Runtime,
        models: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        """Save under a stage's name and a fingerprint; the settings say how often, and how many checkpoints stay."""
        self._folder, self._fingerprint = _folder(stage), fingerprint
        self._every, self._max = runtime.checkpoint_every, runtime.max_checkpoints
        self._models, self._optimizers = models, optimisers
        self._now: Progress | None = None  # the step that left the weights as they are; None once they have changed
        self._saved: list[Path] = []  # of this fingerprint, the newest last
        for optimiser in optimisers.values():
            optimiser.register_step_pre_hook(self._outdate)

    def __enter__(self) -> Self:
        """Begin training."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        """Save the last step if training is interrupted, and note in the exception what is saved.

        Several processes would have to save at the same time, which those that are being ended cannot.
        """
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            return
        if self._every and self._now and processes.world_size() == 1 and self._file(self._now.step) not in self._saved:
            signal.alarm(0)  # of the process that interrupted: a large checkpoint may take longer than it waits
            request_grace(SECONDS_TO_SAVE)
            self._write(self._now)
        error.add_note(self.last_saved)

    def restore(self) -> Progress:
        """Load the last checkpoint into models and optimisers; without one, leave them as they are.

        One that is damaged or has another fingerprint is skipped, and a warning says why.
        """
        found = sorted(self._folder.glob("step-*.pt"))
        unusable = [f"all {len(found)} checkpoints in {self._folder} are damaged"] if found else []
        while found:
            state = _read(found[-1])
            if state:
                difference = self._fingerprint.differences(Fingerprint(*state["fingerprint"]))
                if not difference:
                    self._saved = found
                    return self._load(state)
                unusable.append(f"{found[-1]} is not used: {difference}")
            found.pop()
        if unusable:
            _warn("%s; training starts from the beginning", unusable[:2][-1])  # the newest that is intact, if one is
        return Progress()

    def save(self, progress: Progress, *, final: bool = False) -> None:
        """Remember that a step is done, and save it if a checkpoint is due or it is the final one."""
        self._now = progress
        if self._every and (final or progress.step % self._every == 0):
            self._write(progress)

    def finish(self) -> None:
        """Delete the stage's checkpoints: its outputs are written."""
        delete_checkpoints(self._folder.name)

    @property
    def last_saved(self) -> str:
        """Say which checkpoint is the last good one, and where it lies."""
        if not self._saved:
            return "no checkpoint had been saved yet"
        step = int(self._saved[-1].stem.removeprefix("step-"))
        return f"the last good checkpoint, of step {step}, lies in {self._saved[-1]}"

    def _load(self, state: Mapping[str, Any]) -> Progress:
        for name, model in self._models.items():
            _load_trainable(model, state["models"][name])
        for name, optimiser in self._optimizers.items():
            _load_optimiser(optimiser, state["optimisers"][name])
        self._now = Progress(state["step"], state["rows"], state["extra"])
        return self._now

    def _write(self, progress: Progress) -> None:
        file = self._file(progress.step)
        state = {
            "fingerprint": tuple(self._fingerprint),
            "step": progress.step,
            "rows": [dict(row) for row in progress.rows],
            "extra": dict(progress.extra),
            "models": {name: _weights(model) for name, model in self._models.items()},
            "optimisers": {name: full_tensors(optimiser.state_dict()) for name, optimiser in self._optimizers.items()},
        }
        if processes.is_main():
            with replacing(file) as draft, writing(file), draft.open("wb") as opened:
                checksummed = ChecksumWriter(opened, _name(file))
                torch.save(state, cast("IO[bytes]", checksummed))
                checksummed.end()
        self._saved = [*(each for each in self._saved if each != file), file][-self._max :]
        if processes.is_main():
            self._drop_others()

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step:08}.pt"

    def _drop_others(self) -> None:
        """Delete older checkpoints, those of another fingerprint and what killed runs left half written."""
        for found in set(self._folder.iterdir()) - set(self._saved):
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()

    def _outdate(self, *_: object) -> None:
        """Remember that an optimiser is about to change the weights."""
        self._now = None


def delete_checkpoints(stage: str) -> None:
    """Delete the checkpoints under a stage's name, once its outputs are written."""
    shutil.rmtree(_folder(stage), ignore_errors=True)


def _folder(stage: str) -> Path:
    return STATE / "checkpoints" / stage


def _read(file: Path) -> dict[str, Any] | None:
    """Give what a checkpoint holds, or None, with a warning, where it is damaged."""
    if not is_intact(file, _name(file)):
        _warn("%s is damaged (its checksum does not match) and is skipped", file)
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if "origin" in state:  # what earlier releases called it
            state["fingerprint"] = state.pop("origin")
        Fingerprint(*state["fingerprint"])
    except OSError:  # of the disk, not of the archive
        raise
    except Exception as error:  # a damaged archive raises whatever its first broken byte leads to
        if is_out_of_memory(error):
            raise
        _warn("%s is damaged (%s) and is skipped", file, type(error).__name__)
        return None
    return state


def _name(file: Path) -> str:
    """Stage and step, so that another checkpoint under this name is not taken for it."""
    return f"{file.parent.name}/{file.name}"


def _warn(message: str, *arguments: object) -> None:
    if processes.is_main():
        logger.warning(message, *arguments)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in full_tensors(trainable_weights(model)).items()}


def trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _load_trainable(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, weight in trainable_weights(model).items():
        set_full_value(weight, saved[name])


def _load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    optimiser.load_state_dict(saved)
    for weight, moments in optimiser.state.items():
        for name, moment in moments.items():
            if moment.shape == weight.shape:  # not the count of steps
                moments[name] = shard_like(moment, weight)
