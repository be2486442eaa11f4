"""When the stage that runs has last done something, by the files that it writes."""

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from tasks.common.files import CURVES, METRICS, MODELS, PREPARED, REPORTS, STATE
from tasks.common.progress import STATUS_FILES, running

CHECKPOINTS, REPLIES = STATE / "checkpoints", STATE / "judge"


def seconds_since_progress() -> float | None:
    """Give the seconds since a running stage last wrote progress, a checkpoint, a reply or a part of an output.

    None where no stage runs.
    """
    if not running():
        return None
    times = [found for path in _written() if (found := _modified(path)) is not None]
    return max(0.0, time.time() - max(times, default=time.time()))


def _written() -> Iterator[Path]:
    yield from STATUS_FILES.glob("*.json")
    for folder in (CHECKPOINTS, REPLIES):
        yield from folder.rglob("*")
    for folder in {PREPARED.parent, MODELS, METRICS, CURVES, REPORTS}:  # where drafts lie until they are complete
        yield from chain.from_iterable(draft.rglob("*") for draft in folder.glob(".*"))


def _modified(path: Path) -> float | None:
    with suppress(OSError):  # it was a draft
        return path.stat().st_mtime
    return None
