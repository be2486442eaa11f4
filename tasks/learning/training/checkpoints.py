"""The last checkpoints of a stage, so that a killed run goes on where it was and ends with the same bytes.

They lie outside DVC's outputs. Each holds the fingerprint of what it follows from: training never resumes from one of
other settings, data, models or code. Each has checksums, to detect damage. No random state is saved: what is random is
a pure function of the seed and the step. Several processes write and read one together, and all use the same.
"""

import logging
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from tasks.common.errors import InputError
from tasks.common.files import STATE, replacing
from tasks.common.full_disk import writing
from tasks.common.progress import request_grace
from tasks.learning import processes
from tasks.learning.training.checksums import own_share_is_intact, write_checksums
from tasks.learning.training.sharded_state import load_state, save_state
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import Runtime

CurveRow = dict[str, float]
PROGRESS = "progress.pt"
FORMER_SUFFIX = ".pt"  # of the one file that a checkpoint was
SECONDS_TO_SAVE = 900.0  # at most, of a large checkpoint on a slow disk
logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How far a stage had come."""

    step: int = 0  # steps done
    rows: Sequence[CurveRow] = ()  # the curve so far
    extra: Mapping[str, Any] = {}  # what else the trainer carries from step to step: plain data
    copies: Mapping[str, Mapping[str, Tensor]] = {}  # of weights at another step


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
        self._models, self._optimisers = models, optimisers
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
        if self._every and self._now and processes.world_size() == 1 and self._place(self._now.step) not in self._saved:
            signal.alarm(0)  # of the process that interrupted: a large checkpoint may take longer than it waits
            request_grace(SECONDS_TO_SAVE)
            self._write(self._now)
        error.add_note(self.last_saved)

    def restore(self) -> Progress:
        """Load the last checkpoint into models and optimisers; without one, leave them as they are.

        One that is damaged or has another fingerprint is skipped, and a warning says why. All processes use the same.

        Raises:
            InputError: a process cannot read what another one can.
        """
        there = processes.from_main(sorted(self._folder.glob("step-*")))
        found = [each for each in there if each.suffix != FORMER_SUFFIX]
        unusable = [f"{each} is not used: an earlier version of Trueline saved it" for each in there[-1:]]
        if found:
            unusable = [f"all {len(found)} checkpoints in {self._folder} are damaged"]
        while found:
            saved = _read(found[-1])
            if saved:
                difference = processes.from_main(self._fingerprint.differences(saved.fingerprint))
                if not difference:
                    self._saved = found
                    return self._load(found[-1], saved.progress)
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

    def _load(self, folder: Path, progress: Progress) -> Progress:
        self._now = progress._replace(copies=load_state(self._models, self._optimisers, folder))
        return self._now

    def _write(self, progress: Progress) -> None:
        folder = self._place(progress.step)
        with _replacing_together(folder) as draft, writing(folder):
            if processes.is_main():
                rows, extra = [dict(row) for row in progress.rows], dict(progress.extra)
                torch.save([*self._fingerprint, progress.step, rows, extra], draft / PROGRESS)
            save_state(self._models, self._optimisers, progress.copies, draft)
            write_checksums(draft, _name(folder))
        self._saved = [*(each for each in self._saved if each != folder), folder][-self._max :]
        if processes.is_main():
            self._drop_others()

    def _place(self, step: int) -> Path:
        return self._folder / f"step-{step:08}"

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


class _Saved(NamedTuple):
    """What a checkpoint says of itself."""

    fingerprint: Fingerprint
    progress: Progress


def _read(folder: Path) -> _Saved | None:
    """Give what a checkpoint says of itself, in all processes, or None, with a warning, where it is damaged."""
    fault, unreadable, saved = "", "", None
    try:
        if not own_share_is_intact(folder, _name(folder)):
            fault = "its checksums do not match"
        else:
            settings, hashes, step, rows, extra = torch.load(folder / PROGRESS, map_location="cpu", weights_only=True)
            saved = _Saved(Fingerprint(settings, hashes), Progress(step, rows, extra))
    except OSError as error:  # of the disk, or of a disk that is not shared
        if processes.world_size() == 1:
            raise
        unreadable = f"process {processes.rank()} cannot read it ({error.strerror})"
    of_all = processes.gathered([(fault, unreadable)])
    for _, unreadable in of_all:
        if unreadable:
            raise InputError(
                f"{folder}: {unreadable}: all processes need the checkout on a file system that they share"
            )
    for fault, _ in of_all:
        if fault:
            _warn("%s is damaged (%s) and is skipped", folder, fault)
            return None
    return saved


@contextmanager
def _replacing_together(folder: Path) -> Iterator[Path]:
    """Yield, in all processes, a new folder that takes the place of `folder`."""
    with replacing(folder) if processes.is_main() else nullcontext(folder) as own:
        if processes.is_main():
            own.mkdir()
        yield processes.from_main(own)


def _name(folder: Path) -> str:
    """Stage and step, so that another checkpoint under this name is not taken for it."""
    return f"{folder.parent.name}/{folder.name}"


def _warn(message: str, *arguments: object) -> None:
    if processes.is_main():
        logger.warning(message, *arguments)
