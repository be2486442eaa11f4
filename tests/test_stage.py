"""What surrounds a stage: its exit code, the one sentence on stderr, and the note of why it failed."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed

from tasks import stage as stage_module
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import contents
from tasks.settings.params import Params, load_params
from tasks.stage import (
    EXIT_CODES,
    FAILURE_FILE,
    OUT_OF_MEMORY,
    OUT_OF_MEMORY_FOR_DATA,
    PEER_LOST,
    Failure,
    classify,
    last_failure,
    main,
)

ROOT = Path(__file__).parents[1]
NO_SPACE = "no space left on the disk of models/sft: free some and run again"
READ_ONLY = "the disk of models/sft is read-only: mount it for writing, or move the checkout"
ANOTHER_DISK = "models/sft is on another disk, or is a mount point: make it a folder of the checkout"
NO_PERMISSION = "no permission for models/sft: grant it or run as its owner"


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with the project's settings; the test process neither dies with its parent nor keeps the handler."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_module, "exit_with_parent", lambda: None)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def failing(error: BaseException) -> Callable[[Params], None]:
    def sft(params: Params) -> None:
        raise error

    return sft


def exit_code(stage: Callable[[Params], None]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(stage)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def idle(params: Params) -> None:
    """A stage with nothing to do."""


def test_a_stage_gets_the_settings_and_ends_with_0(capsys):
    seeds = []

    def sft(params: Params) -> None:
        seeds.append(params.seed)

    assert exit_code(sft) == 0
    assert seeds == [load_params().seed]
    assert capsys.readouterr() == ("", "")
    assert last_failure() is None


@pytest.mark.parametrize(
    ("error", "code", "kind", "sentence"),
    [
        (InputError("raw.csv row 3 is empty: fill it"), 2, "input", "raw.csv row 3 is empty: fill it"),
        *(
            (error("no route"), 75, "transient", "a connection failed (no route): run again when it is back")
            for error in (ConnectionError, TimeoutError)
        ),
        *((OSError(number, "full", "models/sft"), 2, "input", NO_SPACE) for number in (errno.ENOSPC, errno.EDQUOT)),
        (OSError(errno.EACCES, "closed", "models/sft"), 2, "input", NO_PERMISSION),
        (OSError(errno.EROFS, "closed", "models/sft"), 2, "input", READ_ONLY),
        *(
            (OSError(number, "another", "models/sft"), 2, "input", ANOTHER_DISK)
            for number in (errno.EXDEV, errno.EBUSY)
        ),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), 75, "transient", PEER_LOST),
        (distributed.DistBackendError("NCCL error: remote process exited"), 75, "transient", PEER_LOST),
        (MemoryError(), 2, "input", OUT_OF_MEMORY_FOR_DATA),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "input", OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "input", OUT_OF_MEMORY),
        (KeyboardInterrupt(), 130, "interrupted", "interrupted; run again to continue"),
        (SystemExit(143), 143, "interrupted", "interrupted; run again to continue"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_gives_its_code_one_sentence_and_a_note(capsys, error, code, kind, sentence):
    assert exit_code(failing(error)) == code
    assert capsys.readouterr() == ("", f"sft: {sentence}\n")
    assert last_failure() == Failure("sft", kind, sentence)


@pytest.mark.parametrize("link", [True, False])
def test_what_is_in_the_way_of_a_folder_is_named(tmp_path, link: bool) -> None:
    place = tmp_path / ".trueline"
    place.symlink_to(tmp_path / "gone") if link else place.touch()
    with pytest.raises(OSError, match="exists") as raised:
        place.mkdir(exist_ok=True)
    assert classify(raised.value) == (
        "input",
        f"a file, or a link to nothing, is where {place} needs a folder: move it away and run again",
    )
    assert classify(FileExistsError(errno.EEXIST, "exists", str(tmp_path)))[0] == "bug"  # a folder is in no way


def test_a_full_disk_without_a_name_is_that_of_the_working_folder(tmp_path):
    # What write() raises: only open() knows the name.
    kind, sentence = classify(OSError(errno.ENOSPC, "No space left on device"))
    assert (kind, sentence) == ("input", f"no space left on the disk of {tmp_path}: free some and run again")


def test_a_full_disk_is_reported_where_a_library_hides_it(tmp_path):
    behind, other = RuntimeError("inline_container.cc: unexpected pos"), RuntimeError("another")  # torch
    behind.__context__, other.__context__ = OSError(errno.ENOSPC, "full"), OSError(errno.ENOENT, "missing")
    quoted = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors
    for error in (behind, Exception(quoted), Exception("(sqlite3.OperationalError) database or disk is full")):
        assert classify(error) == ("input", f"no space left on the disk of {tmp_path}: free some and run again")
    assert classify(other) == ("bug", "RuntimeError: another")


def test_an_answer_of_several_lines_becomes_one(capsys):
    assert exit_code(failing(InputError("the template raises (first\nsecond): fix it"))) == 2
    assert capsys.readouterr().err == "sft: the template raises (first second): fix it\n"


def test_settings_that_cannot_be_read_are_the_users_to_fix(capsys):
    Path("params.yaml").write_text("seed: seven\n")
    assert exit_code(idle) == 2
    assert capsys.readouterr().err.startswith("idle: params.yaml: seed is 'seven'")


@pytest.mark.parametrize("error", [ValueError("what?"), OSError(errno.EIO, "Input/output error")])
def test_a_bug_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)) as raised:
        main(failing(error))
    assert raised.value is error
    assert not hasattr(error, "__notes__")
    assert capsys.readouterr().err == ""  # the traceback is for the interpreter to print
    assert last_failure() == Failure("sft", "bug", f"{type(error).__name__}: {error}")
    assert EXIT_CODES["bug"] == 1


def test_a_bug_in_a_process_is_a_traceback_and_code_1(tmp_path):
    script = "import tasks.stage\ndef sft(params): raise ValueError('what?')\ntasks.stage.main(sft)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):")
    assert ended.stderr.endswith("ValueError: what?\n")


def test_an_interruption_prints_one_sentence(capsys):
    error = KeyboardInterrupt()
    error.add_note("the last good checkpoint, of step 7, lies in x.pt")
    assert exit_code(failing(error)) == 130
    message = "sft: interrupted; the last good checkpoint, of step 7, lies in x.pt; run again to continue\n"
    assert capsys.readouterr().err == message


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_another_python_says_which_it_is():
    command = [sys.executable, "-S", "-m", "tasks.sft"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"{sys.executable} is not the Python that Trueline is installed in: run `. .venv/bin"
    )
    assert ended.stderr.count("\n") == 1


def test_a_later_success_removes_the_note():
    exit_code(failing(InputError("fix it")))
    assert FAILURE_FILE.exists()
    assert exit_code(idle) == 0
    assert not FAILURE_FILE.exists()
    assert last_failure() is None


def test_a_later_failure_replaces_the_note():
    exit_code(failing(InputError("fix it")))
    exit_code(failing(ConnectionError("gone")))
    found = last_failure()
    assert found is not None
    assert found.kind == "transient"


def test_a_note_holds_even_text_that_utf8_cannot(monkeypatch):
    # The interpreter's own stderr escapes such text, that of pytest does not.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace"))
    exit_code(failing(InputError("the column \ud83d is unknown: fix it")))
    assert last_failure() == Failure("sft", "input", r"the column \ud83d is unknown: fix it")


def test_a_stage_begins_only_on_inputs_that_are_what_they_say(monkeypatch, capsys):
    asked: list[str] = []
    monkeypatch.setattr(contents, "check_inputs", asked.append)
    assert exit_code(idle) == 0
    assert asked == ["idle"]
    monkeypatch.setattr(contents, "check_inputs", failing(InputError("models/sft is damaged: run trueline run")))
    assert exit_code(idle) == 2
    assert "idle: models/sft is damaged: run trueline run" in capsys.readouterr().err


def test_outputs_are_restored_for_the_stage_that_failed(monkeypatch):
    restored: list[str] = []
    monkeypatch.setattr(contents, "restore_outputs", restored.append)
    exit_code(idle)
    assert restored == []
    exit_code(failing(InputError("fix it")))
    assert restored == ["sft"]


@pytest.mark.parametrize(
    "trouble",
    [InputError("DVC says:\nno cache"), OSError(errno.ENOSPC, "no cache"), RuntimeError("no cache")],
    ids=lambda error: type(error).__name__,
)
def test_outputs_that_cannot_be_restored_hide_neither_sentence_nor_note(monkeypatch, capsys, trouble):
    monkeypatch.setattr(contents, "restore_outputs", failing(trouble))
    assert exit_code(failing(InputError("raw.csv row 3 is empty: fill it"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sft: raw.csv row 3 is empty: fill it; its earlier outputs are not restored (")
    assert line.endswith("no cache): run dvc checkout")
    assert last_failure() == Failure("sft", "input", line.removeprefix("sft: "))


def test_outputs_that_cannot_be_restored_are_reported_below_the_traceback_of_a_bug(monkeypatch):
    monkeypatch.setattr(contents, "restore_outputs", failing(InputError("no cache")))
    with pytest.raises(ValueError, match="what") as raised:
        main(failing(ValueError("what?")))
    assert raised.value.__notes__ == ["its earlier outputs are not restored (no cache): run dvc checkout"]


def test_a_note_that_cannot_be_written_hides_no_sentence(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage_module, "write_json", full)
    assert exit_code(failing(InputError("fix it"))) == 2
    message = "sft: fix it; .trueline/failure.json could not be written (No space left on device)\n"
    assert capsys.readouterr().err == message


def test_a_note_that_cannot_be_removed_is_a_sentence(monkeypatch, capsys):
    def read_only(path: Path, missing_ok: bool) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    assert exit_code(idle) == 2
    place = "the disk of .trueline/failure.json"
    message = f"idle: {place} is read-only: mount it for writing, or move the checkout\n"
    assert capsys.readouterr().err == message
