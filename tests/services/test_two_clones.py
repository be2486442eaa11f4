"""Two clones with one git remote, one DVC remote and one MLflow: nothing is computed twice."""

import resource
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.registry.conftest import aliases, commit, dvc, shell
from tests.services.conftest import computed, finished, start, trueline

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


def run() -> str:
    """What a run prints, however busy the machine is."""
    done = finished(start("run"), seconds=900)
    assert done.returncode == 0, done.stdout
    return done.stdout


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("has_lock", [True, False])
def test_a_fresh_clone_fetches_and_knows_the_champion(
    clones: list[Path], monkeypatch: pytest.MonkeyPatch, has_lock: bool
) -> None:
    first, second = clones
    run()
    trueline("publish")
    clone(second)
    monkeypatch.chdir(second)
    if not has_lock:
        Path("dvc.lock").unlink()
    before = cpu()
    printed = run()
    assert cpu() - before < CPU_SECONDS
    assert computed() == []
    assert "is the champion already" in printed
    assert aliases()["trueline-policy"] == {"champion": 1}
    assert Path("dvc.lock").read_bytes() == (first / "dvc.lock").read_bytes()
    assert shell("git", "status", "--porcelain", "--untracked-files=no", cwd=second).stdout == ""
