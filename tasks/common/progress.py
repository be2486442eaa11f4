"""How far a stage has come: a bar for those who watch, and a note for `trueline status` and for whoever ends the stage.

The note also says how long the stage may need to stop. A signal is heard only between two calls of torch, and then the
last step has to be saved.
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

NOTES = STATE / "progress"  # a file for each stage that runs
SECONDS_BETWEEN_NOTES = 1.0
SECONDS_BETWEEN_LINES = 10.0
SECONDS_UNSHOWN = 2.0  # a pass over some rows that takes less needs no bar
SECONDS_TO_STOP = 15.0  # besides the call of torch that is under way: to put outputs back and to close the MLflow run
IS_FIRST = os.environ.get("RANK", "0") == "0"  # of several processes that train together

Item = TypeVar("Item")


class Running(NamedTuple):
    """What a stage says of itself while it runs."""

    pid: int
    stage: str
    doing: str = ""  # as the bar is called, such as "evaluate: sft"
    done: int = 0
    total: int | None = None  # None: there is no bar
    unit: str = ""
    seconds_left: float | None = None  # of the bar; None: not known yet
    seconds_to_stop: float = SECONDS_TO_STOP  # from the moment that the stage is told to stop


class _Own:
    """What this process has noted."""

    note: Running | None = None  # None: it runs no stage
    longest = 0.0  # seconds between two steps of a bar


def begin(stage: str) -> None:
    """Note that this process runs a stage."""
    if IS_FIRST:
        _write(Running(os.getpid(), stage))


def request_grace(seconds: float) -> None:
    """Ask whoever ends this process to wait so long, counted from the moment that it was told to stop."""
    if _Own.note:
        _write(_Own.note._replace(seconds_to_stop=seconds))


def end() -> None:
    """Remove the note of this process."""
    if _Own.note:
        with suppress(OSError):  # a note that stays names a process that has ended
            _file(_Own.note).unlink(missing_ok=True)
        _Own.note = None


def running() -> list[Running]:
    """Read what the stages that run in this checkout say of themselves."""
    return [note for file in sorted(NOTES.glob("*.json")) if (note := _read(file)) and _lives(note, file)]


def along(items: Sequence[Item], description: str, unit: str) -> Iterator[Item]:
    """Give the items one by one, under a bar."""
    with Bar(description, len(items), unit, delay=SECONDS_UNSHOWN) as bar:
        for item in items:
            yield item
            bar.update()


class Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
    """A progress bar that is noted, too."""

    def __init__(self, description: str, total: int, unit: str, *, done: int = 0, delay: float = 0.0) -> None:
        """Show how far some work has come: on a terminal a bar that moves, in a log a line every few seconds.

        Of several processes that work together the first one shows it.
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
        self._noted, self._total = 0.0, total
        self._note()

    def update(self, n: float | None = 1) -> bool | None:
        """Tell that `n` more are done."""
        shown = super().update(n)
        now = time.monotonic()
        _Own.longest, self._at = max(_Own.longest, now - self._at), now
        if now - self._noted >= SECONDS_BETWEEN_NOTES:
            self._note()
        return shown

    def _note(self) -> None:
        self._noted = time.monotonic()
        if _Own.note:
            done, elapsed = self.n - self.initial, self._noted - self._began
            note = Running(
                pid=os.getpid(),
                stage=_Own.note.stage,
                doing=self.desc,
                done=int(self.n),
                total=self._total,
                unit=self.unit,
                seconds_left=elapsed / done * (self._total - self.n) if done else None,
                seconds_to_stop=SECONDS_TO_STOP + 2 * _Own.longest,
            )
            _write(note)


def _file(note: Running) -> Path:
    return NOTES / f"{note.stage}.json"


def _write(note: Running) -> None:
    _Own.note = note
    with suppress(OSError):  # a full disk is no reason to end a training that has nothing to write now
        write_json(_file(note), note._asdict())


def _read(file: Path) -> Running | None:
    try:
        return Running(**read_json(file))
    except (InputError, TypeError):  # it has just ended, or another version of this file wrote it
        return None


def _lives(note: Running, file: Path) -> bool:
    """Whether the process still runs: one that was killed leaves its note, and its number may have a new owner."""
    import psutil

    try:
        return bool(psutil.Process(note.pid).create_time() <= file.stat().st_mtime)
    except (psutil.Error, OSError):
        return False
