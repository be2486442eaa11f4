"""Running a stage as a process: signals, exit codes, one sentence for bad input.

Exit codes: 0 done; 2 the input must be fixed (one sentence, no traceback); 75 a transient fault of the environment,
worth a retry; 1 a bug, with its traceback; 130 and 143 interrupted. DVC turns every failure into 255, so kind and
message are also written to a file for the process that started DVC.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple, NoReturn

from tasks.common import progress
from tasks.common.children import SECONDS_TO_STOP, exit_with_parent
from tasks.common.errors import InputError, is_out_of_memory, is_process_group_lost, system_error
from tasks.common.files import STATE, read_json, write_json
from tasks.common.output_folders import FULL, check_output_folders
from tasks.common.safe_text import clean_logs, clean_traceback, sentence
from tasks.settings.params import Params, load_params

FAILURE_FILE = STATE / "failure.json"
EXIT_CODES: dict["FailureKind", int] = {"input": 2, "transient": 75, "bug": 1, "interrupted": 130}
IS_RANK_0 = os.environ.get("RANK", "0") == "0"  # of several training processes
OUT_OF_MEMORY = (
    "out of memory: lower runtime.max_tokens_per_micro_batch or runtime.max_concurrent_sequences in params.yaml, "
    "or train adapters (lora.rank, lora.quantize)"
)
OUT_OF_MEMORY_FOR_DATA = (
    "out of memory for the data: give smaller files or fewer rows (limit in params.yaml, prepare), or more memory"
)
CURES = {
    **dict.fromkeys(FULL, "no space left on the disk of {}: free some and run again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "no permission for {}: grant it or run as its owner"),
    errno.EROFS: "the disk of {} is read-only: mount it for writing, or move the checkout",
    **dict.fromkeys(
        (errno.EXDEV, errno.EBUSY), "{} is on another disk, or is a mount point: make it a folder of the checkout"
    ),
}
IN_THE_WAY = "a file, or a link to nothing, is where {} needs a folder: move it away and run again"
PEER_LOST = "another training process has ended or cannot be reached: run again to continue"
STAGES_WITH_MODELS = ("sft", "reward", "held_out_reward", "dpo", "kto", "ppo", "evaluate")
FailureKind = Literal["input", "transient", "bug", "interrupted"]


class Failure(NamedTuple):
    """Why a stage failed."""

    stage: str
    kind: FailureKind
    message: str


def main(stage: Callable[[Params], None]) -> NoReturn:
    """Run a stage as a process; never returns."""
    clean_logs()
    clean_traceback()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        if IS_RANK_0:
            FAILURE_FILE.unlink(missing_ok=True)
        exit_with_parent()
        check_output_folders()
        progress.begin(stage.__name__)
        params = load_params()
        if IS_RANK_0:
            _check_inputs(stage.__name__)
        _check_memory(stage.__name__, params)
        stage(params)
    except BaseException as error:
        kind, message = classify(error)
        if kind == "interrupted":
            signal.alarm(0)
        failure = _root_failure(Failure(stage.__name__, kind, message), error)
        undone = _restore_outputs(failure) if IS_RANK_0 else ""
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


def _check_memory(stage: str, params: Params) -> None:
    if stage in STAGES_WITH_MODELS:  # the others do not import torch
        from tasks.learning.memory.check import check_memory

        check_memory(stage, params)


def classify(error: BaseException) -> tuple[FailureKind, str]:
    """Return the kind of an error, and its message."""
    if isinstance(error, InputError):
        return "input", str(error)
    if is_out_of_memory(error):  # Python's MemoryError comes from data; the model's memory is torch's
        return "input", OUT_OF_MEMORY_FOR_DATA if isinstance(error, MemoryError) else OUT_OF_MEMORY
    if isinstance(error, KeyboardInterrupt | SystemExit):
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return "interrupted", f"interrupted{notes}; run again to continue"
    if isinstance(error, ConnectionError | TimeoutError) or is_process_group_lost(error):
        lost = f"a connection failed ({sentence(str(error))}): run again when it is back"
        return "transient", PEER_LOST if is_process_group_lost(error) else lost
    system = _system_error(error)
    if system and (cure := _cure(system)):
        return "input", sentence(cure.format(system.filename or Path.cwd()))
    from tasks.registry.mlflow_runs.store import mlflow_fault

    fault = mlflow_fault(error)
    return ("transient", sentence(fault)) if fault else ("bug", sentence(f"{type(error).__name__}: {error}"))


def _cure(error: OSError) -> str | None:
    path = Path(str(error.filename))
    is_in_the_way = error.errno == errno.ENOTDIR or (error.errno == errno.EEXIST and not path.is_dir())
    return IN_THE_WAY if error.filename and is_in_the_way else CURES.get(error.errno or 0)


def _system_error(error: BaseException) -> OSError | None:
    """Return the OSError; one behind a library's error only for a full or read-only disk, others may be unrelated."""
    if "database or disk is full" in str(error):  # sqlite
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    found = system_error(error)
    return found if found is error or (found and found.errno in (*FULL, errno.EROFS)) else None


def last_failure() -> Failure | None:
    """Return the last failure, if a stage has failed since the last success."""
    return Failure(**read_json(FAILURE_FILE)) if FAILURE_FILE.exists() else None


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Shut down at the first signal.

    SIGTERM comes twice: to the process group, and from the kernel once dvc is dead. A launcher forwards Ctrl-C to
    processes that already got it from the terminal. Otherwise a second Ctrl-C ends the process at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN if "WORLD_SIZE" in os.environ else signal.SIG_DFL)
    signal.alarm(SECONDS_TO_STOP)  # ends a process in which a library swallowed the exception
    progress.request_grace(SECONDS_TO_STOP)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(143)


def _root_failure(failure: Failure, error: BaseException) -> Failure:
    """Return the first failure among several training processes: the others fail because of it.

    Its file is written before the others miss the process.
    """
    if "WORLD_SIZE" not in os.environ:
        return failure
    if failure.kind == "interrupted" or is_process_group_lost(error):
        return last_failure() or failure
    if not IS_RANK_0 and not FAILURE_FILE.exists():
        with suppress(OSError):  # rank 0 will fail in the same way, and report it
            write_json(FAILURE_FILE, failure._asdict())
    return failure


def _restore_outputs(failure: Failure) -> str:
    """Restore the outputs that DVC deleted before the stage ran, and write the failure; return what did not work."""
    from tasks.registry.dvc_outputs.contents import restore_outputs

    undone = ""
    try:
        restore_outputs(failure.stage)
    except Exception as error:  # the failure itself must be reported in any case
        undone = f"; its earlier outputs are not restored ({sentence(str(error))}): run dvc checkout"
    try:
        write_json(FAILURE_FILE, failure._replace(message=failure.message + undone)._asdict())
    except OSError as error:  # a full or read-only disk
        undone += f"; {FAILURE_FILE} could not be written ({error.strerror})"
    return undone
