"""Runs end and say so, whatever was away or killed: a real Prefect server and runner, and stages that sleep."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.prefect_server.address import is_healthy
from flows.prefect_server.late_runs import MESSAGE
from flows.prefect_server.temporary_server import _free_port
from tests.conftest import ROOT

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
SHORT_OUTAGE = 20.0  # a runner gives up after about a minute: --outage 75 tests that


class Server:
    """A Prefect server that can go away and come back with the same database."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self.url, self.folder = f"http://127.0.0.1:{self.port}/api", folder

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port), "--no-ui"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, env=environment(self.folder / "server"), stdout=log, stderr=log, start_new_session=True
            )
        eventually(lambda: is_healthy(self.url), 120)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(home: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return clean | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PYTHONPATH": str(ROOT),
    }


def eventually(happens: Callable[[], object], seconds: float) -> float:
    """Wait until something is so; gives the seconds that it took."""
    began = time.monotonic()
    while not happens():
        assert time.monotonic() - began < seconds, f"not within {seconds} seconds"
        time.sleep(0.5)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("prefect"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def serving(
    server: Server, client: SyncPrefectClient, tmp_path: Path
) -> Iterator[Callable[[float, float], subprocess.Popen[bytes]]]:
    """Serve the flow in a folder of its own, and leave nothing behind."""
    started: list[subprocess.Popen[bytes]] = []

    def serve(every: float, seconds: float) -> subprocess.Popen[bytes]:
        (tmp_path / "seconds.txt").write_text(str(seconds))
        command = [sys.executable, "-m", "tests.services.stub_flow", str(every)]
        variables = environment(tmp_path / "home") | {"PREFECT_API_URL": server.url}
        with (tmp_path / "serve.log").open("a") as log:
            started.append(
                subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=log, stderr=log, start_new_session=True)
            )
        return started[-1]

    yield serve
    for process in started:
        kill(process.pid)
        process.wait()
    client.delete_deployment(client.read_deployment_by_name("trueline/scheduled").id)  # and what it has scheduled
    shutil.copy(tmp_path / "serve.log", server.folder / f"{tmp_path.name}.log")


def kill(pid: int) -> None:
    """kill -9 of a process and of all that it started."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=30)


def running(client: SyncPrefectClient) -> FlowRun | None:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    return next(iter(client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))), None)


def state_of(client: SyncPrefectClient, run: FlowRun) -> str | None:
    return client.read_flow_run(run.id).state_name


def sleepers(folder: Path) -> list[psutil.Process]:
    """The stages that run in a folder."""
    found = []
    for each in psutil.process_iter(["cmdline", "cwd"]):
        if "time.sleep" in " ".join(each.info["cmdline"] or []) and each.info["cwd"] == str(folder):
            found.append(each)
    return found


def started(client: SyncPrefectClient, folder: Path) -> FlowRun:
    """Start a run by hand, and wait until its stage runs."""
    eventually(lambda: (folder / "serve.log").stat().st_size, 60)
    deployment = client.read_deployment_by_name("trueline/scheduled")
    run = client.create_flow_run_from_deployment(deployment.id)
    eventually(lambda: sleepers(folder), 120)
    return run


def begun(client: SyncPrefectClient, folder: Path) -> FlowRun:
    """Wait for the run that the schedule starts."""
    eventually(lambda: sleepers(folder) and running(client), 120)
    run = running(client)
    assert run is not None
    return run


def test_cancel_after_an_outage_and_one_of_the_late_runs_is_kept(
    server: Server,
    client: SyncPrefectClient,
    serving: Callable[[float, float], object],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    outage = pytestconfig.getoption("outage", None) or SHORT_OUTAGE
    serving(20, 900)
    run = begun(client, tmp_path)
    server.stop()
    time.sleep(outage)
    assert sleepers(tmp_path)
    server.start()
    time.sleep(30)  # runs are due, and covered
    late = [each for each in client.read_flow_runs() if each.state and each.state.message == MESSAGE]
    client.set_flow_run_state(run.id, Cancelling())
    seconds = eventually(lambda: state_of(client, run) == "Cancelled", 60)

    assert late
    print(f"cancelled within {seconds:.0f} seconds after an outage of {outage:.0f}; {len(late)} late runs dropped")
    waiting = [each for each in client.read_flow_runs() if each.state_name in {"Late", "Pending", "Running"}]
    assert len(waiting) <= 2  # the newest of those before, and one that has come due since


def test_a_run_that_is_killed_with_its_runner_crashes(
    client: SyncPrefectClient, serving: Callable[[float, float], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    runner = serving(3600, 900)
    run = started(client, tmp_path)
    time.sleep(5)
    kill(runner.pid)
    seconds = eventually(lambda: state_of(client, run) == "Crashed", 120)

    print(f"Crashed {seconds:.0f} seconds after kill -9 of runner and run")
    assert not sleepers(tmp_path)


def test_a_run_tells_its_result_to_a_server_that_was_away_at_its_end(
    server: Server,
    client: SyncPrefectClient,
    serving: Callable[[float, float], object],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    outage = pytestconfig.getoption("outage", None) or SHORT_OUTAGE
    serving(3600, 15)
    run = started(client, tmp_path)
    server.stop()
    eventually(lambda: not sleepers(tmp_path), 60)
    time.sleep(outage)
    server.start()
    seconds = eventually(lambda: state_of(client, run) == "Completed", 60)

    print(f"Completed {seconds:.0f} seconds after the server was back")
    [link] = [each for each in client.read_artifacts() if each.flow_run_id == run.id]
    assert link.key == "report"
