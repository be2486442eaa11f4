"""Runs end and say so, whatever was away or killed: a real Prefect server, three runners, and stages that sleep."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.prefect_server.late_runs import MESSAGE
from infra.services.services import Services
from tests.conftest import ROOT
from tests.services.conftest import all_up

pytestmark = pytest.mark.timeout(900)
SHORT_OUTAGE = 20.0  # a runner gives up after about a minute: --outage 75 tests that
NEVER = 3600.0  # seconds between runs


@dataclass
class Served:
    """A runner that serves the flow in a folder of its own, and the run that it has begun."""

    folder: Path
    runner: "subprocess.Popen[bytes]"
    client: SyncPrefectClient

    def runs(self) -> list[FlowRun]:
        deployment = self.client.read_deployment_by_name(f"trueline/{self.folder.name}")
        only = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        return self.client.read_flow_runs(deployment_filter=only)

    def begin(self) -> None:
        """Start a run by hand, which waits until the runner has registered the deployment."""
        eventually(lambda: "trueline/" in (self.folder / "serve.log").read_text(), 120)
        deployment = self.client.read_deployment_by_name(f"trueline/{self.folder.name}")
        self.client.create_flow_run_from_deployment(deployment.id)

    def begun(self) -> FlowRun:
        """Wait until the stage of the run sleeps."""
        eventually(self.sleeps, 120)
        [run] = [each for each in self.runs() if each.state_name == "Running"]
        return run

    def sleeps(self) -> bool:
        """Whether a stage runs."""
        return any(
            "time.sleep" in " ".join(each.info["cmdline"] or []) and each.info["cwd"] == str(self.folder)
            for each in psutil.process_iter(["cmdline", "cwd"])
        )


@dataclass
class AfterOutage:
    """What there was before the Prefect server went away, and what came back."""

    seconds: float
    client: SyncPrefectClient
    kill_time: float  # of time.monotonic
    cancelled: tuple[Served, FlowRun]
    killed: tuple[Served, FlowRun]
    ended: tuple[Served, FlowRun]


def environment(home: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return clean | {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "true", "PYTHONPATH": str(ROOT)}


def eventually(happens: Callable[[], object], seconds: float) -> float:
    """Wait until something is so; gives the seconds that it took."""
    began = time.monotonic()
    while not happens():
        assert time.monotonic() - began < seconds, f"not within {seconds} seconds"
        time.sleep(0.5)
    return time.monotonic() - began


def kill(pid: int) -> None:
    """kill -9 of a process and of all that it started."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=30)


@pytest.fixture(scope="module")
def client(servers: Services) -> Iterator[SyncPrefectClient]:
    all_up(servers)
    address = servers.environment()["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def serve(
    servers: Services, client: SyncPrefectClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, float], Served]]:
    """Serve the flow in a folder of its own, and leave nothing behind."""
    served: list[Served] = []

    def serve(name: str, every: float) -> Served:
        folder = tmp_path_factory.mktemp("served") / name
        folder.mkdir()
        (folder / "sleep").touch()
        command = [sys.executable, "-m", "tests.services.stub_flow", name, str(every)]
        variables = environment(folder / "home") | {"PREFECT_API_URL": servers.environment()["PREFECT_API_URL"]}
        with (folder / "serve.log").open("w") as log:
            runner = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        served.append(Served(folder, runner, client))
        return served[-1]

    yield serve
    for each in served:
        kill(each.runner.pid)
        each.runner.wait()
        client.delete_deployment(client.read_deployment_by_name(f"trueline/{each.folder.name}").id)


@pytest.fixture(scope="module")
def after_outage(
    servers: Services, client: SyncPrefectClient, serve: Callable[[str, float], Served], pytestconfig: pytest.Config
) -> AfterOutage:
    """Three runs, a server that goes away and comes back, and one of the runs killed then: the waits are shared."""
    seconds = pytestconfig.getoption("outage", None) or SHORT_OUTAGE
    late, killed, ended = serve("late", 20.0), serve("killed", NEVER), serve("ended", NEVER)
    killed.begin()
    ended.begin()
    runs = [each.begun() for each in (late, killed, ended)]
    servers.prefect.kill()
    (ended.folder / "sleep").unlink()
    eventually(lambda: not ended.sleeps(), 60)
    time.sleep(seconds)
    assert late.sleeps()
    assert killed.sleeps()
    servers.prefect.start()
    kill(killed.runner.pid)
    return AfterOutage(seconds, client, time.monotonic(), (late, runs[0]), (killed, runs[1]), (ended, runs[2]))


def state_of(client: SyncPrefectClient, run: FlowRun) -> str | None:
    return client.read_flow_run(run.id).state_name


def test_a_run_tells_its_result_to_a_server_that_was_away_at_its_end(after_outage: AfterOutage) -> None:
    _, run = after_outage.ended
    seconds = eventually(lambda: state_of(after_outage.client, run) == "Completed", 60)
    print(f"Completed {seconds:.0f} seconds after the server was back")
    [link] = [each for each in after_outage.client.read_artifacts() if each.flow_run_id == run.id]
    assert link.key == "report"


def test_cancel_after_an_outage_and_one_of_the_late_runs_is_kept(after_outage: AfterOutage) -> None:
    served, run = after_outage.cancelled

    def dropped() -> list[FlowRun]:
        return [each for each in served.runs() if each.state and each.state.message == MESSAGE]

    eventually(dropped, 60)
    after_outage.client.set_flow_run_state(run.id, Cancelling())
    seconds = eventually(lambda: state_of(after_outage.client, run) == "Cancelled", 60)
    print(f"cancelled in {seconds:.0f} seconds after an outage of {after_outage.seconds:.0f}, {len(dropped())} dropped")
    waiting = [each for each in served.runs() if each.state_name in {"Late", "Pending", "Running"}]
    assert len(waiting) <= 2  # the newest of those before, and one that has come due since


def test_a_run_that_is_killed_with_its_runner_crashes(after_outage: AfterOutage) -> None:
    served, run = after_outage.killed
    left = after_outage.kill_time + 120 - time.monotonic()
    seconds = 120 - left + eventually(lambda: state_of(after_outage.client, run) == "Crashed", left)
    print(f"Crashed within {seconds:.0f} seconds after kill -9 of runner and run")
    assert not served.sleeps()
