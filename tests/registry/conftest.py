"""A tiny pipeline in a repository of its own, run once by the real DVC and copied for each test."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from tasks.registry.lineage import sync
from tasks.registry.mlflow_runs.relocation import relocate
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.registry.promotion.opponent import refresh_opponent
from tasks.settings.params import load_params

ROOT = Path(__file__).parents[2]
STAGES = [
    "prepare",
    "validate",
    "base",
    "reward_functions",
    "sft",
    "reward",
    "held_out_reward",
    "reward_check",
    "align",
    "evaluate",
    "gate",
]

# A stage that writes small files from figures.json; the file `fail` names the stage that is to fail halfway, as the
# project's own stages do. Without it no library is loaded: these tests run many stages. A folder given/<stage> is added
# to what the stage writes: a real model, where a test needs one.
MAKE = """
import json, shutil, sys
from pathlib import Path

name = sys.argv[1]
figures = json.loads(Path("figures.json").read_text())
folder = {"prepare": "data/prepare", "validate": "data/validate", "evaluate": "reports/evaluate",
          "gate": "reports/gate", "reward_functions": "data/reward_functions/training",
          "reward_check": "data/reward_check"}.get(name, f"models/{name}")
file = {"validate": "demonstrations.jsonl", "reward_check": "passed.json"}.get(name, "content.txt")

def stage(_params=None):
    Path(folder).mkdir(parents=True, exist_ok=name == "reward_check")  # whose folder DVC does not clear, but the file
    settings = [line for line in Path("params.yaml").read_text().splitlines() if line.strip().startswith("clip: ")]
    Path(folder, file).write_text(f"{name} {figures.get('content', 0)} {settings}")
    if Path("given", name).is_dir():
        shutil.copytree(Path("given", name), folder, dirs_exist_ok=True)
    if failing:
        from tasks.common.errors import InputError
        raise InputError("the input is bad: fix it")
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics", f"{name}.json").write_text(json.dumps(figures.get(name, {"loss": 0.5})))
    if name in ("sft", "reward", "held_out_reward", "ppo", "dpo"):
        Path("curves").mkdir(exist_ok=True)
        Path("curves", f"{name}.csv").write_text("step,loss\\n0,1.5\\n1,0.5\\n")
    if name == "validate":
        given = Path("given/ai_preferences.jsonl")
        Path("data/ai_preferences").mkdir()
        Path("data/ai_preferences/ai_preferences.jsonl").write_text(given.read_text() if given.exists() else "")
    if name == "reward_functions":
        Path("data/reward_functions/ground_truth").mkdir()
        Path("data/reward_functions/ground_truth/functions.json").write_text("{}")
        Path("data/reward_functions/reward_model.json").write_text("{}")
    if name in ("ppo", "dpo"):
        Path("reports", name).mkdir(parents=True, exist_ok=True)
        Path("reports", name, "answers.jsonl").write_text("{}\\n")

failing = Path("fail").exists() and Path("fail").read_text() == name
if failing:
    from tasks.stage import main
    stage.__name__ = name
    main(stage)
stage()
"""

FIGURES: dict[str, Any] = {
    "prepare": {"demonstrations": {"rows_read": 30, "sources": {"rows.jsonl": {"rows": 30, "sha256": "c0ffee"}}}},
    "validate": {"demonstrations": {"valid": 28, "quarantined": 2}},
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
    patch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path_factory.mktemp("git") / "config"))  # a file that git may replace
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


def change_params(**sections):
    """Set keys of params.yaml."""
    settings = yaml.safe_load(Path("params.yaml").read_text())
    for section, values in sections.items():
        settings[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def add_params(**sections):
    """Have dvc.yaml name more sections of params.yaml for its stages."""
    pipeline = yaml.safe_load(Path("dvc.yaml").read_text())
    for stage, names in sections.items():
        pipeline["stages"][stage]["params"] += names
    Path("dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


def run_again(**changes):
    """Do what a run does: look whom to compare with, then reproduce."""
    change_figures(**changes)
    refresh_opponent(load_params())
    repro()


def aliases():
    """The versions behind the aliases of both registered models."""
    client = open_store("trueline").client
    return {
        name: {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
        for name in ("trueline-policy", "trueline-reward")
    }


def commit(folder, message="work"):
    shell("git", "add", "-A", cwd=folder)
    shell("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", message, cwd=folder)


def write_pipeline(folder):
    """Lay down the project's own graph with stages that cost nothing."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    own = {"sft": ["sft"], "align": ["align", "${align.stage}"]}  # few parameters: DVC is slow on a long lock
    for name, stage in pipeline["stages"].items():
        stage["params"] = ["seed", *own.get(name, [])]
        stage["cmd"] = "python make.py " + ("${align.stage}" if name == "align" else name)
        code = [path for path in stage["deps"] if not path.startswith(("data/", "models/", "metrics/", "reports/"))]
        data = [path for path in stage["deps"] if path not in code or path == "opponent.json"]
        stage["deps"] = [*data, "make.py", "figures.json"] if name != "gate" else [*data, "make.py"]
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
        champion.promote(load_params())
        run_again(content=2)
        sync.sync(load_params())  # or every test would write the runs
    return folder


@pytest.fixture
def challenged(challenge, tmp_path, monkeypatch):
    """A copy of the checkout with a champion and another candidate, as the working folder."""
    folder = tmp_path / "checkout"
    shutil.copytree(challenge, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def own(challenged, challenge):
    """The same, with MLflow artifacts of its own: the database names those of the checkout that was copied."""
    own_artifacts(challenged, challenge)
    return challenged


def own_artifacts(folder, copied):
    """Have a copy's database name the copy's own artifacts, and MLflow forget where it knows those of a run."""
    relocate(f"sqlite:///{folder / 'mlflow.db'}", copied.as_uri(), folder.as_uri())
    _artifact_repos_cache.clear()


RANK = 4
EVALUATION = {
    "prompts": 40,
    "confidence": 0.95,
    **{
        model: {"reward": reward, "length": 20.0, "eos_rate": 1.0}
        for model, reward in (("candidate", 0.9), ("sft", 0.1), ("opponent", 0.1))
    },
    "win_rate": {"vs_sft": {"value": 0.8, "low": 0.75, "high": 0.85}},
    "difference": {"vs_sft": {"reward": {"value": 0.8, "low": 0.6, "high": 1.0}}},
    "kl": {"mean": 1.7, "standard_error": 0.1},
}


def give_models(sft, folder):
    """Lay down an SFT model, a reward model on it, and the same aligned by adapters and merged, for the stages."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.learning.models.loading import new_reward_model, normalise_scores
    from tasks.learning.models.saving import save_model

    shutil.copytree(sft, folder / "given/sft")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(sft)
        config = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        adapted: Any = get_peft_model(model, config)
        adapted.merge_and_unload().save_pretrained(folder / "given/ppo")
    tokenizer: Any = AutoTokenizer.from_pretrained(sft)
    tokenizer.save_pretrained(folder / "given/ppo")
    reward = new_reward_model(sft, load_params(ROOT / "params.yaml"))
    normalise_scores(reward, bias=-0.5, gain=2.0)
    save_model(reward, tokenizer, folder / "given/reward")


@pytest.fixture(scope="session")
def real_models(finished, empty_database, tiny_model, tmp_path_factory):
    """Version 1 is champion, and its weights are a model: SFT with adapters of rank 4 merged in; not to be changed."""
    folder = tmp_path_factory.mktemp("real") / "checkout"
    shutil.copytree(finished, folder)
    shutil.copy(empty_database, folder)
    give_models(tiny_model, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        change_params(lora={"rank": RANK}, evaluate={"max_new_tokens": 8, "temperature": 0.0})
        add_params(align=["lora"], evaluate=["evaluate"])
        change_figures(evaluate=EVALUATION, reward={"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9, "pairs": 50}})
        repro()
        champion.promote(load_params())
    return folder


@pytest.fixture
def real(real_models, tmp_path, monkeypatch):
    """A copy of the checkout whose champion is a model, as the working folder."""
    folder = tmp_path / "checkout"
    shutil.copytree(real_models, folder)
    monkeypatch.chdir(folder)
    return folder
