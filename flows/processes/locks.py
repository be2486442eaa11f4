"""One flow at a time in a checkout: a lock that the system releases when its process dies."""

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import STATE

FLOW_LOCK = STATE / "flow.lock"
SECONDS_OF_A_LOOK = 0.3  # a look at who holds the lock takes it for a moment, which must refuse no flow
SECONDS_BETWEEN_TRIES = 1.0


class FlowProcess(NamedTuple):
    """The process that runs the flow."""

    pid: int
    host: str
    since: str  # UTC
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


@contextmanager
def one_flow_at_a_time(path: Path = FLOW_LOCK, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock for a block.

    Args:
        path: the lock's file.
        wait: whether to wait while another process holds it, as a run does that nobody sits before.

    Raises:
        InputError: another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _taken_in_time(file):
            if not wait:
                raise InputError(_refusal(_read(file)))
            sys.stderr.write(f"trueline: waits for {_read(file)}\n")
            while not _taken(file, fcntl.LOCK_EX):
                time.sleep(SECONDS_BETWEEN_TRIES)
        _write(file, FlowProcess(os.getpid(), socket.gethostname(), _now(), shlex.join(sys.argv)))
        try:
            yield
        finally:
            file.truncate(0)


def running_flow(path: Path = FLOW_LOCK) -> FlowProcess | None:
    """Return the process that holds the lock; None if there is none."""
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        return None if _taken(file, fcntl.LOCK_SH) else _read(file)


def process_left_behind(path: Path = FLOW_LOCK) -> FlowProcess | None:
    """Return the process that the lock file names and that holds the lock no more: one that ends empties the file."""
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as file:
        return _read(file) if _taken(file, fcntl.LOCK_SH) and file.read(1) else None


def refuse_a_second() -> None:
    """Stop early if a flow is running, before anything else is started.

    Raises:
        InputError: another process holds the lock; the message names it.
    """
    running = running_flow()
    if running:
        raise InputError(_refusal(running))


def _refusal(running: FlowProcess) -> str:
    return f"a flow runs in this checkout already: {running}; wait for it, or end that process"


def _taken_in_time(file: IO[str]) -> bool:
    deadline = time.monotonic() + SECONDS_OF_A_LOOK
    while not _taken(file, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _taken(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(file: IO[str], running: FlowProcess) -> None:
    file.truncate(0)
    file.write(json.dumps(running._asdict()))
    file.flush()


def _read(file: IO[str]) -> FlowProcess:
    file.seek(0)
    try:
        return FlowProcess(**json.loads(file.read()))
    except (ValueError, TypeError):  # the process has the lock and has not written its name yet
        return FlowProcess(0, "this machine", "just now", "starting")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
