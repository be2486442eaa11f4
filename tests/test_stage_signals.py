"""A stage that is stopped: signals to its process, and to a launcher and the processes that train together."""

import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.stage import PEER_LOST, Failure, last_failure
from tests.test_stage import environment

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


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with the project's settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())


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
