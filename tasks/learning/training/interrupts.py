"""Ctrl-C and SIGTERM put off while weights move."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.learning import processes


@contextmanager
def put_off() -> Iterator[None]:
    """Keep a step whole: Ctrl-C and SIGTERM take effect at the end of the block, but a second Ctrl-C at once."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT and processes.count() == 1:  # a launcher sends a second one by itself
            signal.signal(number, signal.SIG_DFL)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
