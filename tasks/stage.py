"""What every stage process does around its work: signals, exit codes, one sentence for bad input.

Exit codes: 0 done; 2 the input must be mended (one sentence, no traceback); 75 a passing fault of the
surroundings, worth a retry; 1 a bug, with its traceback; 130 and 143 interrupted. DVC turns every failure
into 255, so the kind and the sentence are also left in a note for whoever started DVC.
"""

import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from tasks import STARTED_BY
from tasks.common import progress
from tasks.common.errors import InputError, error_of_the_system, is_company_lost, is_out_of_memory
from tasks.common.files import STATE, read_json, write_json
from tasks.common.output_folders import FULL, check_places
from tasks.common.safe_text import clean_logs, clean_traceback, sentence
from tasks.settings.params import Params, load_params

if TYPE_CHECKING:
    from psutil import Process

FAILURE_NOTE = STATE / "failure.json"
EXIT_CODES: dict["FailureKind", int] = {"input": 2, "transient": 75, "bug": 1, "interrupted": 130}
IS_FIRST = os.environ.get("RANK", "0") == "0"  # of several processes that train together
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_STOP = 60
OUT_OF_MEMORY = (
    "out of memory: lower runtime.max_tokens_per_micro_batch or runtime.max_concurrent_sequences in params.yaml, "
    "or train adapters (lora)"
)
OUT_OF_MEMORY_FOR_DATA = (
    "out of memory for what it read: give smaller files or fewer rows (limit in params.yaml, prepare), or more memory"
)
CURES = {
    **dict.fromkeys(FULL, "no space left on the disk of {}: free some and run again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "no permission for {}: grant it or run as its owner"),
    errno.EROFS: "the disk of {} may only be read: mount it for writing, or move the checkout",
    **dict.fromkeys(
        (errno.EXDEV, errno.EBUSY), "{} is on another disk, or one itself: make it a folder of the checkout"
    ),
}
COMPANY_LOST = "another of the processes that train together has ended, or cannot be reached: run again to go on"
FailureKind = Literal["input", "transient", "bug", "interrupted"]


class Failure(NamedTuple):
    """Why the last stage that failed did so."""

    stage: str
    kind: FailureKind
    message: str


def main(stage: Callable[[Params], None]) -> NoReturn:
    """Run a stage as a process of its own; never returns."""
    clean_logs()
    clean_traceback()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        if IS_FIRST:
            FAILURE_NOTE.unlink(missing_ok=True)
        die_with_parent()
        check_places()
        progress.begin(stage.__name__)
        params = load_params()
        if IS_FIRST:
            _check_inputs(stage.__name__)
        stage(params)
    except BaseException as error:
        kind, message = classify(error)
        if kind == "interrupted":
            signal.alarm(0)
        failure = _first_of_all(Failure(stage.__name__, kind, message), error)
        undone = _leave_as_before(failure) if IS_FIRST else ""
        if kind == "bug":
            if undone:
                error.add_note(undone.removeprefix("; "))
            raise
        print(f"{stage.__name__}: {failure.message}{undone}", file=sys.stderr)
        sys.exit(143 if isinstance(error, SystemExit) else EXIT_CODES[failure.kind])
    finally:
        progress.end()
    sys.exit(0)


def _check_inputs(stage: str) -> None:
    from tasks.registry.dvc_outputs.contents import check_inputs

    check_inputs(stage)


def classify(error: BaseException) -> tuple[FailureKind, str]:
    """Tell whose fault an error is, and the sentence that says so."""
    if isinstance(error, InputError):
        return "input", str(error)
    if is_out_of_memory(error):  # Python's own comes from data and not from the model, whose memory is torch's
        return "input", OUT_OF_MEMORY_FOR_DATA if isinstance(error, MemoryError) else OUT_OF_MEMORY
    if isinstance(error, KeyboardInterrupt | SystemExit):
        kept = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return "interrupted", f"interrupted{kept}; run again to go on"
    if isinstance(error, ConnectionError | TimeoutError) or is_company_lost(error):
        lost = f"a connection failed ({sentence(str(error))}): run again when it is back"
        return "transient", COMPANY_LOST if is_company_lost(error) else lost
    system = _of_the_system(error)
    if system and (cure := CURES.get(system.errno or 0)):
        return "input", sentence(cure.format(system.filename or Path.cwd()))
    from tasks.registry.mlflow_runs.store import mlflow_fault

    fault = mlflow_fault(error)
    return ("transient", sentence(fault)) if fault else ("bug", sentence(f"{type(error).__name__}: {error}"))


def _of_the_system(error: BaseException) -> OSError | None:
    """The system's error; a hidden one only of a full or read-only disk, since any other may be beside the point."""
    if "database or disk is full" in str(error):  # sqlite
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    found = error_of_the_system(error)
    return found if found is error or (found and found.errno in (*FULL, errno.EROFS)) else None


def last_failure() -> Failure | None:
    """Read the note of the stage that failed last, if one did since the last success."""
    return Failure(**read_json(FAILURE_NOTE)) if FAILURE_NOTE.exists() else None


def die_with_parent() -> None:
    """Have the kernel end this process when its parent dies: a killed dvc must leave no trainer behind (Linux).

    Raises:
        SystemExit: the parent is dead already.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != STARTED_BY:
        sys.exit(143)
    if "WORLD_SIZE" in os.environ:
        import psutil

        launcher = psutil.Process(os.getppid())
        threading.Thread(target=_die_with_starter_of, args=(launcher, launcher.ppid()), daemon=True).start()


def _die_with_starter_of(launcher: "Process", started_by: int) -> None:
    """A launcher of several processes does not die with dvc: end this process, and so the launcher, in its stead."""
    while launcher.is_running() and launcher.ppid() == started_by:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    os.kill(os.getpid(), signal.SIGKILL)  # it waits for another process that is gone


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Wind up at the first signal.

    SIGTERM comes twice, from whoever ended the process group and from the kernel once dvc is dead; a launcher hands
    Ctrl-C on to processes that the terminal has told already. Otherwise a second Ctrl-C ends the process at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN if "WORLD_SIZE" in os.environ else signal.SIG_DFL)
    signal.alarm(SECONDS_TO_STOP)  # ends a process in which a library swallowed what is raised here
    progress.request_grace(SECONDS_TO_STOP)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(143)


def _first_of_all(failure: Failure, error: BaseException) -> Failure:
    """Of several processes that train together one fails, and the others for that reason alone: give the one's failure.

    It has left its note by the time that the others miss it.
    """
    if "WORLD_SIZE" not in os.environ:
        return failure
    if failure.kind == "interrupted" or is_company_lost(error):
        return last_failure() or failure
    if not IS_FIRST and not FAILURE_NOTE.exists():
        with suppress(OSError):  # the first will have this trouble too, and say so
            write_json(FAILURE_NOTE, failure._asdict())
    return failure


def _leave_as_before(failure: Failure) -> str:
    """DVC has deleted the stage's outputs before it ran: bring them back, leave the note, and say what was not done."""
    from tasks.registry.dvc_outputs.contents import restore_outputs

    undone = ""
    try:
        restore_outputs(failure.stage)
    except Exception as error:  # whatever is wrong with it, the failure itself must be told
        undone = f"; its earlier outputs are not back ({sentence(str(error))}): run dvc checkout"
    try:
        write_json(FAILURE_NOTE, failure._replace(message=failure.message + undone)._asdict())
    except OSError as error:  # a full or read-only disk
        undone += f"; {FAILURE_NOTE} could not be written ({error.strerror})"
    return undone
