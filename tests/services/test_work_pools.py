"""The pipeline deployed to process pools, whose workers clone it; containers are not started here."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.registry.conftest import commit, shell
from tests.services.conftest import trueline
from tests.test_children import eventually

pytestmark = pytest.mark.timeout(1200)
GPU = {"sft", "reward", "held_out_reward", "reward_check", "align", "evaluate"}
# Each worker has a file of its own, in which a stage leaves its name, and the setting that its clone has.
LOGGED = """
import os
from pathlib import Path
clip = next(line.strip() for line in Path("params.yaml").read_text().splitlines() if line.strip().startswith("clip: "))
with Path(os.environ["COMPUTED"]).open("a") as file:
    file.write(f"{os.sys.argv[1]} {clip}\\n")
"""
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "Worker", "EMAIL": "worker@example.org"}.items()
}
Worker = Callable[[str], Path]


@pytest.fixture
def worker(checkout: Path) -> Iterator[Worker]:
    """Start a worker of a pool; gives the file in which its stages leave their names."""
    started: list[subprocess.Popen[bytes]] = []

    def start(pool: str) -> Path:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
        computed = checkout.with_name(f"computed-{pool}")
        computed.touch()
        with checkout.with_name(f"worker-{pool}.log").open("w") as log:
            variables = {**os.environ, **IDENTITY, "COMPUTED": str(computed)}
            started.append(
                subprocess.Popen(
                    command, cwd=checkout.parent, env=variables, stdout=log, stderr=log, start_new_session=True
                )
            )
        return computed

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def client(checkout: Path) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        yield client


def ended(client: SyncPrefectClient, run: FlowRun, seconds: float) -> FlowRun:
    def is_final() -> bool:
        state = client.read_flow_run(run.id).state
        return state is not None and state.is_final()

    assert eventually(is_final, seconds)
    return client.read_flow_run(run.id)


def messages(client: SyncPrefectClient) -> list[str]:
    """How every run on the server ended."""
    return [f"{run.name}: {run.state}" for run in client.read_flow_runs()]


def test_stages_for_a_gpu_run_in_another_pool(
    checkout: Path, origin: Path, worker: Worker, client: SyncPrefectClient
) -> None:
    (checkout / "make.py").write_text(LOGGED + (checkout / "make.py").read_text())
    (checkout / "dvc.lock").unlink()
    shutil.rmtree(checkout / ".dvc/cache")
    commit(checkout, "nothing has run")
    shell("git", "push", "-q", cwd=checkout)
    trueline("deploy", "--pool", "small", "--gpu-pool", "large", "--set", "ppo.clip=0.1")
    small, large = worker("small"), worker("large")
    deployment = client.read_deployment_by_name("trueline/scheduled")
    run = ended(client, client.create_flow_run_from_deployment(deployment.id), 600)

    log = checkout.with_name("worker-small.log").read_text() + checkout.with_name("worker-large.log").read_text()
    assert run.state_name == "Completed", (messages(client), log)
    ran = [[line.split(" ", 1) for line in file.read_text().splitlines()] for file in (small, large)]
    assert {name for name, _ in ran[0]} & GPU == set(), log
    assert {name for name, _ in ran[1]} == GPU - {"align"} | {"ppo"}
    assert {clip for lines in ran for _, clip in lines} == {"clip: 0.1"}

    computed = small.read_text(), large.read_text()
    again = ended(client, client.create_flow_run_from_deployment(deployment.id), 600)
    assert again.state_name == "Completed", (messages(client), log)  # its clone has the first one's decision
    assert (small.read_text(), large.read_text()) == computed
