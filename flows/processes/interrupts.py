"""Ending an interrupted command in good order, with a message, and soon.

The first SIGTERM or Ctrl+C unwinds the block: what runs saves its checkpoint and ends, and Prefect's server knows it.
A thread ends the process where a server that hangs or is away would hold that up. A second signal ends it at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.common.children import is_working, kill_children
from tasks.stage import last_failure

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_TO_TELL = 5.0  # for what comes after the end of the last stage, where the Prefect server does not answer
LONGEST_TO_TELL = 60.0  # the same where it does
SECONDS_BETWEEN_LOOKS = 0.5
SAME_REQUEST_SECONDS = 1.0  # the program `timeout`, for one, sends its signal twice


class _Ending:
    """How the command of this process ends once it is interrupted."""

    def __init__(self, server_answers: Callable[[], bool]) -> None:
        self.since: float | None = None
        self.code = 0
        self._server_answers = server_answers
        self._is_raised = self._is_reported = False

    def begin(self, number: int) -> None:
        """Begin to end, and limit how long that takes."""
        if self.since is None:
            self.since, self.code = time.monotonic(), 128 + number
            threading.Thread(target=self._limit, daemon=True, name="ending").start()

    def again(self) -> None:
        """Take another signal: the same request, or one to end at once."""
        if self.since is not None and time.monotonic() - self.since > SAME_REQUEST_SECONDS:
            kill_children()
            _print("ended at once: what ran was killed, and MLflow and Prefect may show it as running for a while")
            _end_process(self.code)

    def report(self, rest: str = "") -> None:
        """Print how to continue."""
        self._is_reported = True
        failure = last_failure()
        stage = f" in {failure.stage}" if failure and failure.kind == "interrupted" else ""
        _print(f"interrupted{stage}{rest}")

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._is_raised:
            self.again()
            return
        self._is_raised = True  # also where `begin` was called: Prefect sends SIGTERM on when its flow has ended
        self.begin(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(self.code)

    def _limit(self) -> None:
        """End the process when nothing works any more and nobody can be informed."""
        idle_since = time.monotonic()
        while (idle := time.monotonic() - idle_since) < LONGEST_TO_TELL:
            if is_working():
                idle_since = time.monotonic()
            elif idle > SECONDS_TO_TELL and not self._server_answers():
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if not self._is_reported:  # else Prefect's threads keep the process, whose work is done
            self.report(", and a server that does not answer does not know")
        kill_children()
        _end_process(self.code)


class _Current:
    ending: _Ending | None = None


@contextmanager
def report_interruption(server_answers: Callable[[], bool]) -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl+C does, and print how to continue; the process is to end then.

    Args:
        server_answers: whether there is a Prefect server, and it answers.
    """
    ending = _Current.ending = _Ending(server_answers)
    earlier = {number: signal.signal(number, ending.on_signal) for number in SIGNALS}
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        ending.report()
        raise
    except Exception:
        if ending.since is None:
            raise
        ending.report()  # the error is a server's that was away
        raise SystemExit(ending.code) from None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        _Current.ending = None


def is_ending() -> bool:
    """Tell whether the command has been interrupted."""
    return _Current.ending is not None and _Current.ending.since is not None


def begin_to_end(number: int) -> None:
    """Take the signal that interrupts the command, for a handler that comes before this module's own."""
    if _Current.ending:
        _Current.ending.begin(number)


def end_at_once() -> None:
    """Take a signal that comes after that one; nothing happens where no command reports interruptions."""
    if _Current.ending:
        _Current.ending.again()


def _print(message: str) -> None:
    """Print to stderr, also where the signal has come while something is printed: Python's own stream refuses that."""
    os.write(2, f"trueline: {message}; run again to continue\n".encode())


def _end_process(code: int) -> None:
    os._exit(code)
