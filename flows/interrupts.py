"""A flow that is told to end: in good order, and with a sentence."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from tasks.stage import last_failure


@contextmanager
def interruption_told() -> Iterator[None]:
    """Have SIGTERM unwind the block as Ctrl-C does, and say at its end what is kept and how to go on."""
    earlier = signal.signal(signal.SIGTERM, _exit)  # Prefect hands the signal on to this
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
