import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks.common.children import child, end_group

# A parent that waits for a child, which notes its process id: the shape of DVC and its stage.
ROOT = Path(__file__).parents[1]
SLEEPS = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
FAMILY = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {SLEEPS!r}])
"""
KEEPS = """
import sys
from tasks.common.children import child
with child([sys.executable, "-c", sys.argv[1]]) as process:
    process.wait()
"""


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def grandchild() -> int:
    path = Path("pid")
    assert eventually(lambda: path.exists() and bool(path.read_text()))
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_error_in_the_block_ends_the_whole_group(error: type[BaseException]) -> None:
    with pytest.raises(error), child([sys.executable, "-c", FAMILY]):
        pid = grandchild()
        raise error

    assert is_gone(pid)


def test_a_group_that_ignores_sigterm_is_killed() -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); open('ready', 'w').close(); time.sleep(60)"
    with child([sys.executable, "-c", stubborn]) as process:
        assert eventually(Path("ready").exists)
        end_group(process, grace=0.2)

    assert process.returncode == -signal.SIGKILL


# A stage within a call of torch: no signal is handled before it returns, and then the last step is saved.
DEAF = """
import os, pathlib, signal, sys, time
from tasks.common import progress

def save(*_):
    if {asks}:
        progress.request_grace(20)
    time.sleep(1.5)
    pathlib.Path("saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
progress.SECONDS_TO_STOP = 0
progress.begin("sft")
progress._Current.longest_step = {longest}
with progress.Bar("sft", 2, "step"):
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep({deaf})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("longest", "asks", "deaf", "is_saved"),
    [
        (5.0, False, 1.5, True),  # known from earlier steps
        (0.25, True, 0.0, True),  # noticed at once, and longer is asked for
        (0.0, False, 60.0, False),  # hangs
    ],
)
def test_a_stage_gets_the_time_that_its_steps_take(longest: float, asks: bool, deaf: float, is_saved: bool) -> None:
    script = DEAF.format(longest=longest, asks=asks, deaf=deaf)
    with child([sys.executable, "-c", script]) as process:
        grandchild()
        end_group(process, grace=0.5)

    assert Path("saved").exists() == is_saved


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_killed_parent_leaves_no_child() -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPS, SLEEPS]) as parent:
        pid = grandchild()
        os.kill(parent.pid, signal.SIGKILL)

    assert eventually(lambda: is_gone(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_parent_that_died_during_the_imports_is_noticed() -> None:
    script = "import tasks; tasks.STARTED_BY += 1; from tasks.stage import exit_with_parent; exit_with_parent()"

    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 143


def test_programs_of_this_environment_come_first() -> None:
    with child(["python", "-c", "import sys; print(sys.prefix)"], stdout=subprocess.PIPE) as process:
        output, _ = process.communicate()

    assert output.strip() == sys.prefix
