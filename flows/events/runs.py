"""What is reported of a run: its decisions, its failure or crash, a standstill, and the first success afterwards."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from flows.events import reporting
from flows.events.messages import Event, champion_of, link, of_failure, of_recovery, of_standstill
from flows.stages.last_run import LastRun, last_run, now
from flows.stages.progress import seconds_since_progress
from tasks.common.errors import InputError
from tasks.common.files import STATE, read_json, write_json
from tasks.common.progress import running

TROUBLE = STATE / "trouble.json"  # since when no run has succeeded; removed by the first that does
LOOKS = 20  # at the progress, while the patience lasts
logger = logging.getLogger(__name__)


@contextmanager
def run_reported() -> Iterator[None]:
    """Report what comes of the run in the block, and of the one before if it was killed.

    Enter it before the flow's lock, which a killed run has left its name in.
    """
    before = _last_run()
    if before and before.outcome == "crashed":
        with reporting.failing_nobody():
            _report_failure(before)
    else:
        threading.Thread(target=reporting.send_waiting, daemon=True).start()
    try:
        with _standstill_reported(), reporting.decisions_reported():
            yield
    finally:
        with reporting.failing_nobody():
            after = _last_run()
            if after and after != before:
                _report_outcome(after)


def _report_outcome(run: LastRun) -> None:
    if run.outcome == "succeeded":
        if TROUBLE.exists():
            trouble = read_json(TROUBLE)
            TROUBLE.unlink(missing_ok=True)
            reporting.report(of_recovery(run, f"{trouble['kind']} since {trouble['since']}", _champion()))
    elif run.outcome != "interrupted":  # by somebody, who knows
        _report_failure(run)


def _report_failure(run: LastRun) -> None:
    _note_trouble(run.outcome)
    reporting.report(of_failure(run, _champion()))


@contextmanager
def _standstill_reported() -> Iterator[None]:
    """Watch the progress of the stages in the block from a thread, and report once that there is none."""
    ended, started, page = threading.Event(), now(), link()  # the thread knows nothing of Prefect's run
    patience = timedelta(minutes=reporting.settings().stuck_minutes).total_seconds()

    def watch() -> None:
        while not ended.wait(patience / LOOKS):
            seconds = seconds_since_progress()
            if seconds is not None and seconds >= patience and (event := _standstill(seconds, started)):
                _note_trouble(event.kind)
                reporting.report(event._replace(link=page))
                return

    threading.Thread(target=watch, daemon=True, name="standstill").start()
    try:
        yield
    finally:
        ended.set()


def _standstill(seconds: float, started: str) -> Event | None:
    stages = running()
    if not stages:  # it has just ended
        return None
    stage = stages[0]
    progress = f"{stage.doing} {stage.done:,} of {stage.total:,} {stage.unit}s" if stage.total else "unknown"
    return of_standstill(stage.stage, seconds, progress, stage.pid, started)


def _note_trouble(kind: str) -> None:
    if TROUBLE.exists():
        return
    try:
        write_json(TROUBLE, {"since": now(), "kind": kind})
    except OSError as error:  # the report matters more
        logger.warning("%s could not be written (%s)", TROUBLE, error.strerror)


def _champion() -> str:
    return champion_of(reporting.decisions())


def _last_run() -> LastRun | None:
    try:
        return last_run()
    except InputError:  # damaged: the next run replaces it
        return None
