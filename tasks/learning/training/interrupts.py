"""Ctrl-C and SIGTERM delayed while weights change."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.learning import processes


@contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Finish a step: Ctrl-C and SIGTERM take effect at the end of the block, but a second Ctrl-C at once."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield
        return
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT and processes.world_size() == 1:  # a launcher sends a second one by itself
            signal.signal(number, signal.SIG_DFL)

    earlier = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
