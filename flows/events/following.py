"""What `trueline watch` does: one look after another, until it is interrupted, or one that decides."""

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import NoReturn

from flows.events.reporting import send_waiting
from flows.events.starting import Outcome, ask_server, run_here
from flows.events.watch import Step, Watch, one_watch
from flows.prefect_server.address import named_server
from tasks.common.errors import InputError
from tasks.common.escapes import safe_json, visible

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
SECONDS_BETWEEN_MESSAGES = 300.0  # what a receiver did not take is tried again so often
WORDS = {
    "equal": "written with equal content: no run",
    "changing": "written; waiting until nothing changes",
    "ran": "changed: the run succeeded",
    "failed": "changed: the run failed, and starts again when a source changes, or by trueline watch --again",
    "asked": "changed: the Prefect server was asked for a run",
}


def seconds_of(text: str) -> float:
    """Read a span of time: 30, 30s, 5m or 1h.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise InputError(f"{text!r} is no span of time: write 30s, 5m or 1h")
    return float(found[1]) * UNITS[found[2]]


def follow(quiet: float, every: float, *, once: bool, again: bool, as_json: bool) -> Step:
    """Look at the sources, and start runs, until interrupted; with `once` until there is an answer.

    Args:
        quiet: seconds without a change after which what was written is complete.
        every: seconds between two looks.
        once: whether it ends as soon as it is known whether a run is due: after the quiet time at the latest.
        again: whether a run is started in any case.
        as_json: whether each answer is a line of JSON on stdout.

    Raises:
        InputError: another process watches; with `once`, something must be fixed.
    """
    with one_watch(), _ended_by_sigterm():
        watch = Watch(_starter(as_json), quiet, again=again)
        last = None
        for step in _steps(watch, quiet, every, once=once):
            if step != last or step.finding in ("ran", "failed", "asked"):
                show(step, as_json)
            last = step
    assert last is not None
    return last


def show(step: Step, as_json: bool) -> None:
    """Print what came of a look."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    if as_json:
        line = safe_json(json.dumps({"time": now, **step._asdict()}, ensure_ascii=False))
    else:
        words = step.message or WORDS.get(step.finding, step.finding)
        line = visible(f"{now[:19].replace('T', ' ')} {', '.join(step.sources) or 'sources'}: {words}")
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _steps(watch: Watch, quiet: float, every: float, *, once: bool) -> Iterator[Step]:
    if once:
        step = watch.step()
        if step.finding == "changing":
            time.sleep(quiet)
            step = watch.step()
        yield step
        return
    sent = time.monotonic()
    while True:
        try:
            yield watch.step()
        except InputError as error:  # somebody is about to fix it
            yield Step("blocked", [], str(error))
        if time.monotonic() - sent > SECONDS_BETWEEN_MESSAGES:
            send_waiting()
            sent = time.monotonic()
        time.sleep(every)


def _starter(as_json: bool) -> Callable[[int], Outcome]:
    if server := named_server():
        return lambda number: ask_server(server, number)
    return lambda _number: run_here(sys.stderr if as_json else None)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""
    earlier = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
