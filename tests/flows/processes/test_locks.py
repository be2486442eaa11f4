import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.processes.locks import FLOW_LOCK, one_flow_at_a_time, process_left_behind, refuse_a_second, running_flow
from tasks.common.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from flows.processes.locks import one_flow_at_a_time
with one_flow_at_a_time():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def other(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_flow_says_who_holds_the_lock(other) -> None:
    with pytest.raises(InputError, match=f"process {other.pid} on .* since 20"), one_flow_at_a_time():
        raise AssertionError("the lock was given twice")
    with pytest.raises(InputError, match=f"process {other.pid} "):
        refuse_a_second()


def test_a_killed_holder_holds_no_more(other) -> None:
    other.kill()
    other.wait()

    assert running_flow() is None
    left = process_left_behind()
    assert left is not None and left.pid == other.pid
    with one_flow_at_a_time():
        assert running_flow() is not None
        assert process_left_behind() is None
    assert process_left_behind() is None


def test_a_look_at_the_lock_refuses_no_flow() -> None:
    with one_flow_at_a_time():
        pass
    with FLOW_LOCK.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with one_flow_at_a_time():
            assert running_flow() is not None


def test_nobody_holds_it_before_and_after() -> None:
    assert running_flow() is None
    with one_flow_at_a_time():
        written = json.loads(Path(".trueline/flow.lock").read_text())
        assert set(written) == {"pid", "host", "since", "command"}
    assert running_flow() is None
