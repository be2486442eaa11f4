import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.data.base_model import sandbox as module
from tasks.data.base_model.sandbox import ExceededError, bounded

ROOT = Path(__file__).parents[2]


def test_what_the_work_finds_comes_back_and_what_it_changes_does_not():
    seen: list[int] = []

    def work() -> list[int]:
        seen.append(1)
        return [*seen, 2]

    assert bounded(work, seconds=10, megabytes=100) == [1, 2]
    assert seen == []


def test_what_it_prints_is_not_seen(capfd: pytest.CaptureFixture[str]):
    bounded(lambda: os.system("echo loud; echo loud >&2"), seconds=10, megabytes=100)
    assert capfd.readouterr() == ("", "")


def test_an_input_error_keeps_its_sentence_and_a_bug_its_traceback():
    def refuse() -> None:
        raise InputError("x is wrong: fix it")

    with pytest.raises(InputError, match=r"^x is wrong: fix it$"):
        bounded(refuse, seconds=10, megabytes=100)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        bounded(lambda: 1 / 0, seconds=10, megabytes=100)


def forever() -> None:
    while True:
        pass


def grow() -> None:
    blocks = []
    while True:
        blocks.append(bytes(2**20))


def give_up() -> None:
    raise ExceededError


@pytest.mark.slow
def test_work_may_use_torch_after_its_threads_have_been_used():
    code = """
import torch
from tasks.data.base_model.sandbox import bounded
torch.set_num_threads(4)
numbers = torch.ones(2_000_000)
numbers.exp().sum()
print(bounded(lambda: numbers.exp().sum().item(), seconds=20, megabytes=1000) > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )
    assert done.stdout == "True\n"


def test_work_that_waits_for_ever_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LONGEST_WAIT", 1)
    with pytest.raises(ExceededError):
        bounded(lambda: time.sleep(10**6), seconds=1, megabytes=50)


@pytest.mark.slow
@pytest.mark.parametrize("work", [forever, grow, give_up, lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_work_that_takes_too_much_or_dies_ends(work):
    start = time.process_time()
    with pytest.raises(ExceededError):
        bounded(work, seconds=1, megabytes=50)
    assert time.process_time() - start < 1
