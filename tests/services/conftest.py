"""Real servers, started once by each process of pytest, and checkouts whose stages cost nothing.

A test has an experiment, registered models and a remote of its own, by its name.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.services import s3
from infra.services.services import DVC_REMOTE, PORTS, Services
from tasks.registry.dvc_outputs.graph import graph_status
from tasks.registry.mlflow_runs.store import open_store
from tasks.settings.params import load_params
from tests.conftest import ROOT
from tests.registry import conftest as of_registry
from tests.registry.conftest import EVALUATION, FIGURES, MAKE, change_params, commit, dvc, shell, write_pipeline
from tests.test_children import eventually

quiet_dvc = of_registry.quiet_dvc  # a fixture of every test here, too

HERE = Path(__file__).parent
TRUELINE = [str(Path(sys.executable).parent / "trueline")]
LONGEST = ("test_runs_that_end", "test_work_pools", "test_outages", "test_run", "test_promotions")
COMMANDS: list["subprocess.Popen[str]"] = []  # that the test has started
# Each stage leaves a line in `computed`. The one that the file `hold` names logs to MLflow until that file is gone.
HELD = """
import sys, time
from pathlib import Path

with Path("computed").open("a") as computed:
    computed.write(sys.argv[1] + "\\n")
hold = Path("hold")
if hold.exists() and hold.read_text() == sys.argv[1]:
    from tasks.registry.mlflow_runs import tracking
    from tasks.settings.params import load_params

    with tracking.run(sys.argv[1], load_params()) as run:
        step = 0
        while hold.exists():
            run.log(step, {"loss": 1.0})
            Path("holding").touch()
            step += 1
            time.sleep(0.2)
        run.summary({"steps": step})
"""
COUNTS = {
    "rows": 30,
    "valid": 28,
    "quarantined": 2,
    "splits": {"train": 20, "validation": 4, "test": 4},
    "findings": {},
    "tokens": {"mean": 5.0, "p50": 5, "p95": 9, "max": 9},
}
INTERVAL = {"value": 0.8, "low": 0.75, "high": 0.85, "pairs": 50}
KINDS = ("demonstrations", "preferences", "ratings", "prompts", "ai_preferences")
# As much of the stages' metrics as a run prints.
HEADLINES: dict[str, Any] = {
    "prepare": {
        "demonstrations": {"rows_read": 30, "records": 30, "sources": {"rows.jsonl": {"rows": 30, "sha256": "c0ffee"}}}
    },
    "base": {"parameters": 10},
    "validate": {**dict.fromkeys(KINDS, COUNTS), "warnings": []},
    "sft": {"loss": 0.5, "validation": {"before": {"loss": 2.0}, "after": {"loss": 0.5}}},
    "reward": {"accuracy": INTERVAL},
    "held_out_reward": {"accuracy": INTERVAL},
    "ppo": {"first": {"reward": 0.1}, "last": {"reward": 0.9}},
    "evaluate": {**EVALUATION, "win_rate": {"vs_sft": INTERVAL, "vs_opponent": INTERVAL}, "ground_truth": {}},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long a server is away: seconds in the suite, `--outage 90` for what a restart of a machine takes."""
    parser.addoption("--outage", type=float, help="seconds for which tests/services take a server away")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is apart from the default suite; the files that wait or compute longest come first."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.services)
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home for Prefect's client in the tests' own process: the checkout's is there only after a run."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def no_command_left() -> Iterator[None]:
    """A command of a test that has failed ends with it, and so does what it has started (flows/processes)."""
    yield
    while COMMANDS:
        process = COMMANDS.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def outage(pytestconfig: pytest.Config) -> float:
    """Seconds for which a server is away."""
    return pytestconfig.getoption("outage", None) or 3.0


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The servers that `make services` starts, where a test can take one away."""
    services = Services(tmp_path_factory.mktemp("servers"), {name: free_port() for name in PORTS})
    try:
        services.start()
        yield services
    finally:
        services.stop()


@pytest.fixture
def up(servers: Services) -> Services:
    """The servers, all of which answer."""
    return all_up(servers)


def all_up(services: Services) -> Services:
    """Start what an earlier test that failed has left away."""
    for server in services.all:
        server.resume()
        if not server.is_running():
            server.start()
        server.wait()
    return services


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose stages have all been run; not to be changed."""
    from tasks.registry.lineage.report import MARKER

    folder = tmp_path_factory.mktemp("made")
    shell("git", "init", "-q", "-b", "main", cwd=folder)
    dvc("init", "-q", cwd=folder)
    write_pipeline(folder)
    (folder / "make.py").write_text(HELD + MAKE)
    (folder / "figures.json").write_text(json.dumps({**FIGURES, **HEADLINES}))
    (folder / "given/gate").mkdir(parents=True)
    (folder / "given/gate/report.html").write_text(f"<html>{MARKER}</html>")
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "exclude.txt", folder)
    made_files = ("data", "models", "metrics", "curves", "reports", "mlruns", ".trueline")
    own_files = ("computed", "hold", "holding", "__pycache__")
    (folder / ".gitignore").write_text("\n".join([*(f"/{name}" for name in made_files), *own_files]))
    dvc("repro", "-q", cwd=folder)
    commit(folder, "first run")
    return folder


@pytest.fixture
def checkout(
    up: Services, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """A copy of that checkout as the working folder, which uses the servers as `make services` tells."""
    folder, name = tmp_path / "checkout", request.node.name.replace("[", "-").rstrip("]")
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    for variable, value in up.environment().items():
        monkeypatch.setenv(variable, value)
    address = f"{s3.BUCKETS[0]}/{name}"
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/config").write_text(DVC_REMOTE.format(bucket=address, port=up.ports["s3"], keys=up.keys))
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "dvc"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    change_params(registry={"experiment": name, "policy": f"{name}-policy", "reward": f"{name}-reward"})
    commit(folder, "names of its own")
    return folder


@pytest.fixture
def origin(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository whose branch the checkout follows."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "T")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    shutil.copy(ROOT / ".gitattributes", checkout)
    commit(checkout, "git keeps both sides' decisions")
    bare = checkout.with_name("bare")
    shell("git", "clone", "-q", "--bare", str(checkout), str(bare), cwd=checkout)
    shell("git", "remote", "add", "origin", str(bare), cwd=checkout)
    shell("git", "push", "-q", "-u", "origin", "main", cwd=checkout)
    return bare


def trueline(*arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints that ends well."""
    done = finished(start(*arguments, cwd=cwd, environment=environment))
    assert done.returncode == 0, done.stdout
    return done.stdout


def start(
    *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a command; it is the leader of a process group, as of a shell's job."""
    process = subprocess.Popen(
        [*TRUELINE, *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    COMMANDS.append(process)
    return process


def finished(process: "subprocess.Popen[str]", seconds: float = 200) -> "subprocess.CompletedProcess[str]":
    """What a command prints until it ends."""
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(f"no end after {seconds} seconds: {printed}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, printed)


def hold(stage: str) -> None:
    """Make a stage stale, and have it go on until `let_go`."""
    lock = Path("dvc.lock").read_text()
    begin = lock.index(f"  {stage}:\n")
    rest = lock.find("\n  ", begin)
    while rest != -1 and lock[rest + 3] in " -":
        rest = lock.find("\n  ", rest + 1)
    Path("dvc.lock").write_text(lock[:begin] + (lock[rest + 1 :] if rest != -1 else ""))
    shutil.rmtree(".dvc/cache/runs")
    assert stage in graph_status().stale
    Path("holding").unlink(missing_ok=True)
    Path("hold").write_text("ppo" if stage == "align" else stage)  # as make.py is called


def wait_until_held(process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Wait until the stage that is held has begun."""
    assert eventually(lambda: Path("holding").exists() or process.poll() is not None, seconds)
    assert process.poll() is None, finished(process).stdout


def let_go() -> None:
    """Let the stage that is held end."""
    Path("hold").unlink()


def champions() -> dict[str, int]:
    """The version behind each alias of the working folder's policy."""
    params = load_params()
    found = open_store(params.registry.experiment).client.get_registered_model(params.registry.policy).aliases
    return {alias: int(version) for alias, version in found.items()}


def computed() -> list[str]:
    """The stages that have been computed in the working folder, in order."""
    return Path("computed").read_text().split() if Path("computed").exists() else []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
