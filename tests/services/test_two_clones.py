"""Two clones with one git remote, one DVC remote and one MLflow: nothing is trained twice, no decision is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.merging import merge
from flows.publish import publish
from tasks.registry.promotion.decisions import past_decisions
from tests.conftest import ROOT
from tests.registry.conftest import aliases, change_figures, commit, dvc, repro, shell
from tests.registry.test_server_lock import ROLL_BACK
from tests.services.conftest import computed, trueline

ROUNDS = 10  # of two at once
CPU_SECONDS = 60.0  # for a fresh clone, beside the download


@pytest.fixture
def clones(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A checkout that follows a branch of a bare repository, and where its clone will be; the first is here."""
    first = tmp_path / "first"
    shutil.copytree(made, first, symlinks=True)
    monkeypatch.chdir(first)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "T")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    shutil.copy(ROOT / ".gitattributes", first)
    dvc("remote", "add", "-d", "store", str(tmp_path / "store"), cwd=first)
    commit(first)
    shell("git", "clone", "-q", "--bare", str(first), str(tmp_path / "bare"), cwd=tmp_path)
    shell("git", "remote", "add", "origin", str(tmp_path / "bare"), cwd=first)
    shell("git", "push", "-q", "-u", "origin", "main", cwd=first)
    return [first, tmp_path / "second"]


def clone(folder: Path) -> None:
    shell("git", "clone", "-q", str(folder.parent / "bare"), str(folder), cwd=folder.parent)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("has_lock", [True, False])
def test_a_fresh_clone_fetches_and_knows_the_champion(
    clones: list[Path], monkeypatch: pytest.MonkeyPatch, has_lock: bool
) -> None:
    first, second = clones
    trueline("run")
    trueline("publish")
    clone(second)
    monkeypatch.chdir(second)
    if not has_lock:
        Path("dvc.lock").unlink()
    before = cpu()
    printed = trueline("run")
    assert cpu() - before < CPU_SECONDS
    assert computed() == []
    assert "is the champion already" in printed
    assert aliases()["trueline-policy"] == {"champion": 1}
    assert Path("dvc.lock").read_bytes() == (first / "dvc.lock").read_bytes()
    assert shell("git", "status", "--porcelain", "--untracked-files=no", cwd=second).stdout == ""


def test_twenty_at_once_leave_one_champion_and_every_decision_in_git(
    clones: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = clones
    trueline("run")
    change_figures(content=2)
    repro()
    trueline("run")
    commit(first)
    publish()
    clone(second)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ROLL_BACK], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for folder in clones
    ]
    try:
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n", "ready\n"]
        expected = 2
        for number in range(ROUNDS):
            for process in processes:
                print(f"reason {number}", file=process.stdin, flush=True)
            answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
            expected = 3 - expected
            winner = answers.index(expected)
            os.chdir(clones[winner])
            publish()
            os.chdir(clones[1 - winner])
            assert merge()["conflicts"] == []
            assert aliases()["trueline-policy"] == {"champion": expected, "previous": 3 - expected}
    finally:
        for process in processes:
            process.communicate(timeout=60)
    for folder in clones:
        monkeypatch.chdir(folder)
        reasons = [each["reasons"] for each in past_decisions() if each["action"] == "rollback"]
        assert reasons == [[f"reason {number}"] for number in range(ROUNDS)]
