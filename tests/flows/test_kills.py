"""kill -9 of dvc and of the flow in the middle of training: no orphan, and run again the same dvc.lock."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from flows.stages.reproduce import reproduce
from tasks.settings.params import PARAMS_FILE
from tests.conftest import ROOT, SMALL, MakeParams
from tests.flows.conftest import dvc
from tests.flows.training import PID, WAIT
from tests.test_children import eventually

DVC = [sys.executable, "-m", "dvc", "repro"]
FLOW = [sys.executable, "-c", "from flows.stages.reproduce import reproduce; reproduce('sft')"]


@pytest.fixture
def training(repository: Path, workspace: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DVC repository whose one stage trains a tiny model: six steps, of which every second is saved."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SHELL", raising=False)  # as under cron and in containers: DVC takes sh, bash gives way unasked
    PARAMS_FILE.write_text(yaml.safe_dump(make_params(**SMALL).model_dump(by_alias=True)), encoding="utf-8")
    shutil.rmtree("models/sft")
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["sft"]
    stage["cmd"] = stage["cmd"].replace("${runtime.launcher} tasks.sft", "python -m tests.flows.training")
    stage["deps"] = [path for path in stage["deps"] if not path.startswith("tasks/")]
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"sft": stage}}), encoding="utf-8")


def kill_at(step: int, command: list[str]) -> None:
    """Kill a command outright once what it has started is in a step; that ends, too."""
    PID.unlink(missing_ok=True)
    WAIT.write_text(str(step))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert eventually(lambda: PID.exists() and bool(PID.read_text()), seconds=120)
        family = psutil.Process(process.pid).children(recursive=True)
        assert int(PID.read_text()) in {each.pid for each in family}
        os.kill(process.pid, signal.SIGKILL)
    WAIT.unlink()
    # Gone altogether: as long as the system keeps its number, DVC takes a dead DVC for one that holds its locks.
    assert eventually(lambda: not any(psutil.pid_exists(each.pid) for each in family), seconds=60)


def checkpoints() -> list[str]:
    return sorted(path.name for path in Path(".trueline/checkpoints/sft").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_dvc_and_flow_killed_then_run_again(training: None) -> None:
    kill_at(4, DVC)
    assert checkpoints() == ["step-00000002", "step-00000003"]
    kill_at(6, FLOW)
    assert checkpoints() == ["step-00000004", "step-00000005"]
    assert reproduce("sft").outcome == "ran"
    resumed = Path("dvc.lock").read_bytes()

    for made in ("models/sft", "metrics", "curves", ".dvc/cache"):
        shutil.rmtree(made)
    Path("dvc.lock").unlink()
    dvc("repro")

    assert Path("dvc.lock").read_bytes() == resumed
