import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.processes.interrupts import report_interruption
from tasks.common.files import write_json
from tasks.stage import FAILURE_FILE, Failure
from tests.test_children import ROOT, eventually, grandchild, is_gone

# A command whose end hangs, as where a Prefect server accepts a request and never answers it.
CHILD = """
import os, pathlib, signal, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(60)
"""
COMMAND = f"""
import sys, time
from flows.processes import interrupts
from tasks.common.children import child
interrupts.SECONDS_TO_TELL, interrupts.LONGEST_TO_TELL, interrupts.SAME_REQUEST_SECONDS = map(float, sys.argv[1:4])
interrupts.SECONDS_BETWEEN_LOOKS = 0.1
with interrupts.report_interruption(lambda: sys.argv[4] == "answers"):
    try:
        with child([sys.executable, "-c", {CHILD!r}, sys.argv[6]]) as process:
            process.wait()
    finally:
        open("unwinding", "w").close()
        time.sleep(float(sys.argv[5]))
"""
LEFT_OUT = "trueline: interrupted, and a server that does not answer does not know; run again to continue\n"


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def command(
    to_tell: float, same: float, *, answers: bool = False, hangs: float = 60, child: str = "heeds"
) -> "subprocess.Popen[str]":
    """Start it, with a child that heeds SIGTERM or is deaf."""
    given = [str(to_tell), "60", str(same), "answers" if answers else "hangs", str(hangs), child]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *given], stderr=subprocess.PIPE, text=True)
    grandchild()
    return process


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        return process.wait(timeout=20), process.communicate()[1]
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_hangs_does_not_hold_up_the_end(number: signal.Signals) -> None:
    process = command(to_tell=0.5, same=1)
    process.send_signal(number)

    assert end(process) == (128 + number, LEFT_OUT)
    assert is_gone(grandchild())


def test_a_server_that_answers_gets_the_time_it_takes() -> None:
    process = command(to_tell=0.1, same=1, answers=True, hangs=1)
    process.send_signal(signal.SIGTERM)

    assert end(process) == (143, "trueline: interrupted; run again to continue\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_at_once(number: signal.Signals) -> None:
    process = command(to_tell=60, same=0.2, child="deaf")
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(number)
    code, printed = end(process)

    assert code == 128 + number
    assert printed.startswith("trueline: ended at once: what ran was killed, and MLflow and Prefect may show it")
    assert printed.endswith("; run again to continue\n")
    assert is_gone(grandchild())


def test_a_signal_that_is_sent_twice_is_one_request() -> None:
    process = command(to_tell=60, same=30, hangs=0.5)
    process.send_signal(signal.SIGTERM)
    assert eventually(Path("unwinding").exists)
    process.send_signal(signal.SIGTERM)

    assert end(process) == (143, "trueline: interrupted; run again to continue\n")


def test_the_stage_that_was_interrupted_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    write_json(FAILURE_FILE, Failure("sft", "interrupted", "interrupted; run again to continue")._asdict())
    with pytest.raises(KeyboardInterrupt), report_interruption(lambda: True):
        raise KeyboardInterrupt

    assert capfd.readouterr().err == "trueline: interrupted in sft; run again to continue\n"


def test_another_error_is_for_others_to_tell(capfd: pytest.CaptureFixture[str]) -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="what"), report_interruption(lambda: True):
        raise ValueError("what?")

    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) is earlier
