"""Child processes that never outlive the process that started them.

A child leads a process group of its own, and the whole group is ended when its block is left by an error, Ctrl+C or
cancellation. The kernel ends the child should this process be killed outright (Linux).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from tasks import STARTED_BY
from tasks.common.progress import running

SECONDS_BETWEEN_CHECKS = 1.0
SECONDS_TO_STOP = 60  # that a stage has once it is asked to end
GRACE_SECONDS = 15.0  # for a process that asks for no more (tasks/common/progress.py)


_children: dict[int, bool] = {}  # those that live: the process id, and whether its end is waited for


@contextmanager
def child(
    command: Sequence[str],
    *,
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    is_server: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Start a command; waits for it when the block is left, and ends its whole group where the block raises.

    Args:
        command: the program and its arguments.
        stdout: as subprocess takes it.
        stderr: the same.
        is_server: whether it works for others alone, and never ends by itself.
    """
    with subprocess.Popen(
        [sys.executable, "-m", __name__, *command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        env=_environment(),
        start_new_session=True,
    ) as process:
        _children[process.pid] = is_server
        try:
            yield process
        except BaseException:
            end_group(process)
            raise
        finally:
            del _children[process.pid]


def is_working() -> bool:
    """Tell whether a child lives that is no server."""
    return not all(_children.values())


def kill_children() -> None:
    """Kill all children, and all that they have started, in whatever group."""
    family = []
    for pid in [*_children]:
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(pid)
            family += [leader, *leader.children(recursive=True)]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def end_group(process: subprocess.Popen[str], grace: float = GRACE_SECONDS) -> None:
    """Ask a process group to end, wait up to `grace` seconds, and kill what is left of it.

    A stage that needs longer says so, before it is asked to end or while it ends, and is given the time.
    """
    try:
        _signal(process.pid, signal.SIGTERM)
        asked = time.monotonic()
        while _lives(process) and time.monotonic() - asked < max(grace, _grace_asked_for(process)):
            time.sleep(0.05)
    finally:
        _signal(process.pid, signal.SIGKILL)
        process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _lives(process: subprocess.Popen[str]) -> bool:
    """Tell whether any member of the group still works; the leader may be gone before its children are."""
    process.poll()
    others = (each for each in psutil.process_iter(["status"]) if each.info["status"] != psutil.STATUS_ZOMBIE)
    return any(_group_of(other.pid) == process.pid for other in others)


def _grace_asked_for(process: subprocess.Popen[str]) -> float:
    """The most seconds that a stage of the group asks for; 0 where there is none."""
    return max((note.seconds_to_stop for note in running() if _group_of(note.pid) == process.pid), default=0.0)


def _group_of(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _environment() -> dict[str, str]:
    """Find `python` and `dvc` of this virtual environment first, whether or not it was activated; print at once."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": programs, "PYTHONUNBUFFERED": "1"}


def exit_with_parent() -> None:
    """Let the kernel end this process when its parent dies: a killed dvc must not leave a trainer running (Linux).

    Raises:
        SystemExit: the parent has died already.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != STARTED_BY:
        sys.exit(143)
    if "WORLD_SIZE" in os.environ:
        launcher = psutil.Process(os.getppid())
        threading.Thread(target=_exit_with_starter_of, args=(launcher, launcher.ppid()), daemon=True).start()


def _exit_with_starter_of(launcher: psutil.Process, started_by: int) -> None:
    """End this process, and so its launcher, when dvc dies: a launcher of several processes does not notice."""
    while launcher.is_running() and launcher.ppid() == started_by:
        time.sleep(SECONDS_BETWEEN_CHECKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    os.kill(os.getpid(), signal.SIGKILL)  # it may wait for another process that has ended


if __name__ == "__main__":
    exit_with_parent()  # outlasts the exec
    os.execvp(sys.argv[1], sys.argv[1:])
