"""The outcome of the last run, in `.trueline/last_run.json`: written at its end, also after a failure."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from flows.processes.locks import process_left_behind
from flows.stages.reproduce import StageError, StageRun
from tasks.common.errors import InputError
from tasks.common.files import STATE, read_json, write_json
from tasks.registry.promotion.champion import Promotion
from tasks.stage import classify

LAST_RUN = STATE / "last_run.json"
# crashed: its process was killed, or the machine went down.
Outcome = Literal["succeeded", "input", "failed", "interrupted", "crashed"]
Verdict = Literal["promoted", "held", "refused", "unchanged"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
logger = logging.getLogger(__name__)


class LastRun(NamedTuple):
    """A run that has ended. Times are UTC in ISO 8601."""

    started: str
    ended: str | None  # None: it crashed
    outcome: Outcome
    failed_stage: str | None
    message: str | None  # why it did not succeed
    verdict: Verdict | None  # None: it did not come to one
    version: int | None
    stages: dict[str, dict[str, Any]]  # "outcome" and "seconds" of each one that ended
    last_success: str | None  # end of the last run that succeeded, this one included


@dataclass
class Recording:
    """What a run has done so far."""

    started: str
    stages: list[StageRun] = field(default_factory=list)
    promotion: Promotion | None = None
    is_run: bool = True  # False: another record will say what came of it


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record what comes of the block, which holds the flow's lock."""
    recording = Recording(now())
    try:
        yield recording
    except BaseException as error:
        _save(_failed(recording, error))
        raise
    if recording.is_run:
        _save(_ended(recording, "succeeded"))


def last_run() -> LastRun | None:
    """Return the last run that ended, a crashed one included; None if there was none.

    Raises:
        InputError: the file is damaged.
    """
    saved = _saved()
    crashed = process_left_behind()
    if crashed is None or (saved and saved.ended and saved.ended >= crashed.since):
        return saved
    message = f"its process {crashed.pid} on {crashed.host} was killed"
    success = saved.last_success if saved else None
    return LastRun(crashed.since, None, "crashed", None, message, None, None, {}, success)


def now() -> str:
    """Return the time, UTC in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def verdict_of(promotion: Promotion) -> Verdict:
    """Return a run's verdict in one word; unchanged: the candidate is the champion already."""
    if promotion["promoted"]:
        return "promoted"
    if promotion["held"]:
        return "held"
    return "unchanged" if promotion["champion"] == promotion["version"] else "refused"


def _saved(path: Path = LAST_RUN) -> LastRun | None:
    if not path.exists():
        return None
    try:
        return LastRun(**read_json(path))
    except (InputError, TypeError):
        raise InputError(f"{path} is damaged or of another release: delete it; the next run writes it") from None


def _failed(recording: Recording, error: BaseException) -> LastRun:
    if isinstance(error, StageError):
        interrupted = error.failure.kind == "interrupted"
        return _ended(recording, "interrupted" if interrupted else "failed", error.failure.stage, str(error))
    kind, message = classify(error)
    if not isinstance(error, Exception):  # Prefect's signals, too
        return _ended(recording, "interrupted", None, message)
    return _ended(recording, "input" if kind == "input" else "failed", None, message)


def _ended(
    recording: Recording, outcome: Outcome, failed_stage: str | None = None, message: str | None = None
) -> LastRun:
    ended, promotion = now(), recording.promotion
    try:
        before = _saved()
    except InputError:
        before = None  # this record replaces it
    return LastRun(
        started=recording.started,
        ended=ended,
        outcome=outcome,
        failed_stage=failed_stage,
        message=message,
        verdict=promotion and verdict_of(promotion),
        version=promotion and promotion["version"],
        stages={run.stage: {"outcome": run.outcome, "seconds": round(run.seconds, 2)} for run in recording.stages},
        last_success=ended if outcome == "succeeded" else before and before.last_success,
    )


def _save(run: LastRun) -> None:
    try:
        write_json(LAST_RUN, run._asdict())
    except OSError as error:  # a full disk must not hide the run's own result
        logger.warning("%s could not be written (%s)", LAST_RUN, error.strerror)
