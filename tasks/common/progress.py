"""The progress of a stage: a bar, and a status file for `trueline status` and for a process that stops the stage.

The status file also says how long the stage may need to stop: Python handles a signal only between two calls of torch,
and then the last step has to be saved.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from tasks.common.errors import InputError
from tasks.common.files import STATE, read_json, write_json

STATUS_FILES = STATE / "progress"  # one for each running stage
SECONDS_BETWEEN_WRITES = 1.0
SECONDS_BETWEEN_LINES = 10.0
SECONDS_HIDDEN = 2.0  # a faster pass over some rows needs no bar
SECONDS_TO_STOP = 15.0  # after the current call of torch: to restore outputs and close the MLflow run
IS_FIRST = os.environ.get("RANK", "0") == "0"  # of several training processes

Item = TypeVar("Item")


class StageProgress(NamedTuple):
    """The progress of a running stage."""

    pid: int
    stage: str
    doing: str = ""  # description of the bar, such as "evaluate: sft"
    done: int = 0
    total: int | None = None  # None: no bar
    unit: str = ""
    seconds_left: float | None = None  # of the bar; None: unknown
    seconds_to_stop: float = SECONDS_TO_STOP  # after the request to stop


class _Current:
    """The state of this process."""

    progress: StageProgress | None = None  # None: it runs no stage
    longest_step = 0.0  # seconds between two steps of a bar


def begin(stage: str) -> None:
    """Write the status file: this process runs a stage."""
    if IS_FIRST:
        _write(StageProgress(os.getpid(), stage))


def request_grace(seconds: float) -> None:
    """Ask for this many seconds between the request to stop and a kill."""
    if _Current.progress:
        _write(_Current.progress._replace(seconds_to_stop=seconds))


def end() -> None:
    """Remove the status file of this process."""
    if _Current.progress:
        with suppress(OSError):  # a file that stays names a process that has ended
            _file(_Current.progress).unlink(missing_ok=True)
        _Current.progress = None


def running() -> list[StageProgress]:
    """Return the progress of the stages that run in this checkout."""
    return [found for file in sorted(STATUS_FILES.glob("*.json")) if (found := _read(file)) and _is_alive(found, file)]


def track(items: Sequence[Item], description: str, unit: str) -> Iterator[Item]:
    """Yield the items under a progress bar."""
    with Bar(description, len(items), unit, delay=SECONDS_HIDDEN) as bar:
        for item in items:
            yield item
            bar.update()


class Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
    """A progress bar that also updates the status file."""

    def __init__(self, description: str, total: int, unit: str, *, done: int = 0, delay: float = 0.0) -> None:
        """Set up the bar: on a terminal it moves, in a log it is a line every few seconds.

        Of several processes only rank 0 shows it.
        """
        interval = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        super().__init__(
            desc=description,
            total=total,
            unit=unit,
            initial=done,
            mininterval=interval,
            delay=delay,
            disable=not IS_FIRST,
        )
        self._began = self._at = time.monotonic()
        self._written, self._total = 0.0, total
        self._write()

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by `n`."""
        shown = super().update(n)
        now = time.monotonic()
        _Current.longest_step, self._at = max(_Current.longest_step, now - self._at), now
        if now - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()
        return shown

    def _write(self) -> None:
        self._written = time.monotonic()
        if _Current.progress:
            done, elapsed = self.n - self.initial, self._written - self._began
            progress = StageProgress(
                pid=os.getpid(),
                stage=_Current.progress.stage,
                doing=self.desc,
                done=int(self.n),
                total=self._total,
                unit=self.unit,
                seconds_left=elapsed / done * (self._total - self.n) if done else None,
                seconds_to_stop=SECONDS_TO_STOP + 2 * _Current.longest_step,
            )
            _write(progress)


def _file(progress: StageProgress) -> Path:
    return STATUS_FILES / f"{progress.stage}.json"


def _write(progress: StageProgress) -> None:
    _Current.progress = progress
    with suppress(OSError):  # a full disk must not end a training
        write_json(_file(progress), progress._asdict())


def _read(file: Path) -> StageProgress | None:
    try:
        return StageProgress(**read_json(file))
    except (InputError, TypeError):  # the stage has just ended, or another release wrote the file
        return None


def _is_alive(progress: StageProgress, file: Path) -> bool:
    """Return whether the process still runs: a killed one leaves its file, and its number may be reused."""
    import psutil

    try:
        return bool(psutil.Process(progress.pid).create_time() <= file.stat().st_mtime)
    except (psutil.Error, OSError):
        return False
