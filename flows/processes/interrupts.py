"""Ending an interrupted flow in good order, with a message."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from tasks.stage import last_failure


@contextmanager
def report_interruption() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, and print how to continue."""
    earlier = signal.signal(signal.SIGTERM, _exit)  # Prefect forwards the signal to this
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        failure = last_failure()
        stage = f" in {failure.stage}" if failure and failure.kind == "interrupted" else ""
        sys.stderr.write(f"trueline: interrupted{stage}; run again to continue\n")
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)
