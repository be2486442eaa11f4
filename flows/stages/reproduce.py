"""One stage brought up to date by DVC's own command line, and what came of it."""

import logging
import subprocess
import sys
import time
from typing import Literal, NamedTuple

from flows.checks.surroundings import check_locations
from flows.stages.figures import headline_figure
from tasks.common.children import child
from tasks.common.errors import InputError
from tasks.common.escapes import visible
from tasks.common.safe_text import without_secrets
from tasks.registry.dvc_outputs.cache import DamagedError
from tasks.registry.dvc_outputs.contents import check_outputs
from tasks.stage import FAILURE_FILE, Failure, last_failure

logger = logging.getLogger(__name__)
Outcome = Literal["ran", "reused"]
# What DVC says of its own bookkeeping, stage after stage; the rest is shown.
BOOKKEEPING = (
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "To enable auto staging",
    "Use `dvc push`",
    "Data and pipelines are up to date",
    "\tgit add",
    "\tdvc config core.autostage",
)


class StageRun(NamedTuple):
    """What came of a stage."""

    stage: str
    outcome: Outcome
    seconds: float
    figure: str  # the one that tells most, from its metrics


class StageError(RuntimeError):
    """A stage did not come to its end, through no fault of the input."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure.stage} failed: {self.failure.message}"


def reproduce(stage: str, *, fetched: bool = False) -> StageRun:
    """Have `dvc repro` run a stage where it has changed, or take its outputs from the cache; those are hashed.

    Where the cache gives back what is not on record, and no copy is intact, the stage makes it again.

    Args:
        stage: its name.
        fetched: whether its result was fetched just now, as a message says: that DVC has it in the cache is not shown.

    Raises:
        InputError: the stage says that its input must be fixed.
        StageError: it failed for another reason.
    """
    run, was_restored = _reproduce(stage, (*BOOKKEEPING, _cached(stage)) if fetched else BOOKKEEPING)
    try:
        if was_restored:
            check_outputs(stage)
    except DamagedError as error:
        logger.warning("%s", error)
        run, _ = _reproduce(stage, BOOKKEEPING)
    return run


def _cached(stage: str) -> str:
    """Give what DVC says of a stage whose outputs it takes from the cache."""
    return f"Stage '{stage}' is cached"


def _reproduce(stage: str, hidden: tuple[str, ...]) -> tuple[StageRun, bool]:
    """Have DVC bring a stage up to date, and tell whether the outputs came from its cache."""
    FAILURE_FILE.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    started, ran, was_restored = time.monotonic(), False, False
    with child(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            ran = ran or line.startswith(f"Running stage '{stage}'")
            was_restored = was_restored or line.startswith(_cached(stage))
            if line.strip() and not line.startswith(hidden):
                sys.stderr.write(visible(without_secrets(line)))
        if process.wait() != 0:
            raise _error(stage)
    run = StageRun(stage, "ran" if ran else "reused", time.monotonic() - started, headline_figure(stage))
    return run, was_restored


def _error(stage: str) -> Exception:
    failure = last_failure()
    if failure is None:
        try:
            check_locations()  # DVC's own trouble may be that the cache is full by now
        except InputError as error:
            return InputError(f"{stage}: {error}")
        message = "DVC refused it, or the system ended it (out of memory?); the lines above say more"
        return StageError(Failure(stage, "bug", message))
    if failure.kind == "input":
        return InputError(f"{failure.stage}: {failure.message}")
    return StageError(failure)
