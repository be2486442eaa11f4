"""Work on what strangers wrote, in a process of its own that may take so much time and memory and no more."""

import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from tasks.common.errors import InputError, is_out_of_memory

Found = TypeVar("Found")
LONGEST_WAIT = 10  # seconds for each second of processor time: a machine may be that busy


class ExceededError(Exception):
    """The work took more time or memory than it was given, found that it would, or brought down its process."""


def bounded(work: Callable[[], Found], *, seconds: int, megabytes: int) -> Found:
    """Do some work in a fork of this process, and give what it found, which must be picklable.

    Args:
        work: is done in one thread.
        seconds: of processor time, so that a busy machine changes nothing.
        megabytes: what it may allocate beyond what this process has (Linux).

    Raises:
        InputError: the work raised it.
        ExceededError: the work took more than it was given, its process died, or it raised this itself.
        RuntimeError: the work raised something else, whose traceback is in the message.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, sender, seconds, megabytes), daemon=True)
    process.start()
    sender.close()
    kind: str
    found: Any
    try:  # a fork may also wait for ever, for a lock that another thread held when it was made
        kind, found = receiver.recv() if receiver.poll(LONGEST_WAIT * seconds) else ("exceeded", None)
    except EOFError:
        kind, found = "exceeded", None
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if kind == "input":
        raise InputError(found)
    if kind == "exceeded":
        raise ExceededError
    if kind == "bug":
        raise RuntimeError(found)
    answer: Found = found
    return answer


def _answer(work: Callable[[], object], sender: Connection, seconds: int, megabytes: int) -> None:
    """Be the fork; nobody sees what libraries print in it, for the caller says what is wrong."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(
            1
        )  # the threads of its pool did not come along, and it would wait for them
    _limit(seconds, megabytes)
    answer: tuple[str, Any]
    try:
        answer = "found", work()
    except InputError as error:
        answer = "input", str(error)
    except ExceededError:
        answer = "exceeded", None
    except Exception as error:
        answer = ("exceeded", None) if is_out_of_memory(error) else ("bug", traceback.format_exc())
    sender.send(answer)
    os._exit(0)  # without what the parent registered for its own end


def _limit(seconds: int, megabytes: int) -> None:
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hardest))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # that may be written to
        most = pages * resource.getpagesize() + (megabytes << 20)
        _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hardest < 0 else min(most, hardest), hardest))
