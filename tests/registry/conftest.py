"""A tiny pipeline in a repository of its own, run once by the real DVC and copied for each test."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from tasks.params import load_params
from tasks.registry import promotion
from tasks.registry.opponent import refresh_opponent
from tasks.registry.store import open_store

ROOT = Path(__file__).parents[2]
STAGES = ["prepare", "validate", "base", "sft", "reward", "judge", "trial", "align", "evaluate", "gate"]

# A stage that writes small files from figures.json; the file `fail` names the stage that is to fail halfway, as the
# project's own stages do. Without it no library is loaded: these tests run many stages.
MAKE = """
import json, sys
from pathlib import Path

name = sys.argv[1]
figures = json.loads(Path("figures.json").read_text())
folder = {"prepare": "data/prepare", "validate": "data/validate", "evaluate": "reports/evaluate",
          "gate": "reports/gate"}.get(name, f"models/{name}")
file = {"validate": "demonstrations.jsonl"}.get(name, "content.txt")

def stage(_params=None):
    Path(folder).mkdir(parents=True, exist_ok=name == "trial")  # which has no folder that DVC would clear
    settings = [line for line in Path("params.yaml").read_text().splitlines() if "clip: " in line]
    Path(folder, file).write_text(f"{name} {figures.get('content', 0)} {settings}")
    if failing:
        from tasks.errors import InputError
        raise InputError("the input is bad: mend it")
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics", f"{name}.json").write_text(json.dumps(figures.get(name, {"loss": 0.5})))
    if name in ("sft", "reward", "judge", "ppo", "dpo"):
        Path("curves").mkdir(exist_ok=True)
        Path("curves", f"{name}.csv").write_text("step,loss\\n0,1.5\\n1,0.5\\n")

failing = Path("fail").exists() and Path("fail").read_text() == name
if failing:
    from tasks.stage import main
    stage.__name__ = name
    main(stage)
stage()
"""

FIGURES = {
    "prepare": {"demonstrations": {"rows": 30}},
    "validate": {"demonstrations": {"kept": 28, "quarantined": 2}},
    "sft": {"loss": 0.5},
    "evaluate": {"win_rate": {"vs_opponent": {"value": 0.7}}},
    "gate": {"decision": "promote", "reasons": ["All is well."], "checks": [{"name": "kl", "figure": 1.0}]},
}


@pytest.fixture(scope="session", autouse=True)
def quiet_dvc(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DVC_NO_ANALYTICS", "1")
    patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc-site")))
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()


def shell(*command, cwd, check=True):
    return subprocess.run(command, cwd=cwd, check=check, capture_output=True, text=True)


def dvc(*arguments, cwd, check=True):
    return shell("dvc", *arguments, cwd=cwd, check=check)


def repro(*targets, **options):
    """Run `dvc repro` in the working folder from within this process, which spares DVC's start."""
    with Repo(str(Path.cwd())) as repo:
        return [stage.name for stage in repo.reproduce(list(targets) or None, **options)]


def change_figures(**changes):
    """Have the stages write other content from now on."""
    figures = json.loads(Path("figures.json").read_text())
    Path("figures.json").write_text(json.dumps(figures | changes))


def run_again(**changes):
    """Do what a run does: look whom to compare with, then reproduce."""
    change_figures(**changes)
    refresh_opponent(load_params())
    repro()


def commit(folder, message="work"):
    shell("git", "add", "-A", cwd=folder)
    shell("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", message, cwd=folder)


def write_pipeline(folder):
    """Lay down the project's own graph with stages that cost nothing."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    own = {"sft": ["sft"], "align": ["align", "${align.method}"]}  # few parameters: DVC is slow on a long lock
    for name, stage in pipeline["stages"].items():
        stage["params"] = ["seed", *own.get(name, [])]
        stage["cmd"] = "python make.py " + ("${align.method}" if name == "align" else name)
        code = [path for path in stage["deps"] if not path.startswith(("data/", "models/", "metrics/", "reports/"))]
        kept = [path for path in stage["deps"] if path not in code or path == "opponent.json"]
        stage["deps"] = [*kept, "make.py", "figures.json"] if name != "gate" else [*kept, "make.py"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / "opponent.json", folder)
    (folder / "make.py").write_text(MAKE)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, quiet_dvc):
    """The pipeline after its first run and commit; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    shell("git", "init", "-q", cwd=folder)
    dvc("init", "-q", cwd=folder)
    write_pipeline(folder)
    (folder / "figures.json").write_text(json.dumps(FIGURES))
    (folder / ".gitignore").write_text(
        "\n".join(
            [
                "/mlflow.db",
                "/mlruns",
                "/.trueline",
                "/data",
                "/models",
                "/metrics",
                "/curves",
                "/reports",
                "__pycache__",
            ]
        )
    )
    dvc("repro", "-q", cwd=folder)
    commit(folder, "first run")
    return folder


@pytest.fixture
def repository(finished, tmp_path, monkeypatch):
    """A copy of the finished pipeline, as the working folder."""
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory, quiet_dvc):
    """An MLflow database that has been made ready: its migrations cost seconds."""
    folder = tmp_path_factory.mktemp("database")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store("made ready")  # the experiment of the project is made where it is used
    return folder / "mlflow.db"


@pytest.fixture
def tracked(repository, empty_database):
    """The repository with an MLflow database that is ready and empty."""
    shutil.copy(empty_database, repository)
    return repository


@pytest.fixture(scope="session")
def challenge(finished, empty_database, tmp_path_factory):
    """Version 1 is champion, and the pipeline has run again and made another candidate; not to be changed."""
    folder = tmp_path_factory.mktemp("challenge") / "checkout"
    shutil.copytree(finished, folder)
    shutil.copy(empty_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        promotion.promote(load_params())
        run_again(content=2)
    return folder


@pytest.fixture
def challenged(challenge, tmp_path, monkeypatch):
    """A copy of the checkout with a champion and another candidate, as the working folder."""
    folder = tmp_path / "checkout"
    shutil.copytree(challenge, folder)
    monkeypatch.chdir(folder)
    return folder
