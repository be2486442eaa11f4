"""What surrounds a stage: its exit code, the one sentence on stderr, and the note of why it failed."""

import errno
import io
import os
import select
import signal
import socket
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
# Says that it is at work, and works until it is asked to stop.
LONG_STAGE = """
import time
from tasks.stage import main

def sft(params):
    print("at work", flush=True)
    time.sleep(60)

main(sft)
"""
# Two processes sum up until the second one is killed, or says that its input must be fixed.
LONG_SUM = """
import os, signal, sys
import torch
from tasks.common.errors import InputError
from tasks.learning import processes
from tasks.stage import main

def sft(params):
    processes.initialise(torch.device("cpu"))
    for number in range(10**9):
        processes.all_reduce(torch.ones(1))
        if processes.rank() == 1 and number == 3:
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("fix it")

main(sft)
"""
# Takes a moment to end.
WINDS_UP = """
import time
from tasks.stage import main

def sft(params):
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("winds up", flush=True)
        time.sleep(1)
        print("wound up", flush=True)

main(sft)
"""
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


def test_sigterm_ends_a_stage_with_143_and_a_sentence(tmp_path):
    command = [sys.executable, "-c", LONG_STAGE]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert process.stderr.read() == "sft: interrupted; run again to continue\n"
    assert last_failure() == Failure("sft", "interrupted", "interrupted; run again to continue")


@pytest.mark.parametrize(
    ("number", "launched", "code", "last"),
    [
        (signal.SIGINT, {}, -signal.SIGINT, "winds up\n"),  # a second Ctrl-C ends it at once
        (signal.SIGINT, {"WORLD_SIZE": "2"}, 130, "wound up\n"),  # a launcher hands the first one on
        (signal.SIGTERM, {}, 143, "wound up\n"),  # it comes from the group's end and from that of dvc
    ],
)
def test_a_second_signal(number: signal.Signals, launched: dict[str, str], code: int, last: str):
    command = [sys.executable, "-c", WINDS_UP]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment() | launched
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        assert process.stdout.readline() == "winds up\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert ("winds up\n" + process.stdout.read()).endswith(last)


def test_an_interruption_that_a_library_swallows_ends_the_process_all_the_same():
    deaf = "import tasks.stage\ntasks.stage.SECONDS_TO_STOP = 1\n" + LONG_STAGE.replace(
        '    print("at work", flush=True)\n    time.sleep(60)',
        '    try:\n        print("at work", flush=True)\n        time.sleep(60)\n'
        "    except BaseException:\n        time.sleep(60)",
    )
    assert "except" in deaf
    with subprocess.Popen(
        [sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGALRM


def test_an_interruption_prints_one_sentence(capsys):
    error = KeyboardInterrupt()
    error.add_note("the last good checkpoint, of step 7, lies in x.pt")
    assert exit_code(failing(error)) == 130
    message = "sft: interrupted; the last good checkpoint, of step 7, lies in x.pt; run again to continue\n"
    assert capsys.readouterr().err == message


def test_processes_of_a_launcher_end_when_what_started_the_launcher_is_killed():
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LONG_STAGE!r}], check=False)"
    shell = ["sh", "-c", 'python -c "$0"; true', launcher]
    surroundings = environment() | {"WORLD_SIZE": "2"}
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, env=surroundings) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        ended, _, _ = select.select([process.stdout], [], [], 30)  # nobody holds it open any more
        assert ended
        assert process.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "how", "failure"),
    [(1, "fix it", Failure("sft", "input", "fix it")), (2, "killed", Failure("sft", "transient", PEER_LOST))],
)
def test_of_processes_that_train_together_none_outlives_another(machines: int, how: str, failure: Failure):
    Path("long_sum.py").write_text(LONG_SUM, encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"{ROOT}/infra/accelerate/ddp.yaml"]
    if machines > 1:
        command += ["--num_machines", str(machines), "--main_process_ip", "127.0.0.1"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            command += ["--main_process_port", str(probe.getsockname()[1])]
    launchers = [
        subprocess.Popen(
            [*command, "--machine_rank", str(machine), "-m", "long_sum", how],
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine in range(machines)
    ]
    printed = "".join(launcher.communicate(timeout=60)[1] for launcher in launchers)
    assert [launcher.returncode for launcher in launchers] == [1] * machines
    assert f"sft: {failure.message}\n" in printed
    assert last_failure() == failure  # the first process's, who tells what the other left


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
