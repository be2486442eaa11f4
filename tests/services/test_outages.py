"""Each server goes away in the middle of a stage and comes back: the run goes on, its record is whole, and it can end.

The suite holds one stage; with `--outage` every stage is held, and every server is away at a stage's end.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.services.server import Server
from infra.services.services import Services
from tasks.registry.mlflow_runs.store import open_store
from tasks.settings.params import load_params
from tests.registry.conftest import STAGES
from tests.services.conftest import finished, hold, let_go, start, trueline, wait_until_held
from tests.test_children import eventually

HELD = ("gate", *STAGES[:-1])  # the first in every suite
SERVERS = ("PostgreSQL", "S3", "MLflow", "Prefect")  # likewise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A few in the suite, all where somebody names the length of an outage."""
    shown = None if metafunc.config.getoption("outage", None) else 1
    for argument, values in {"held_stage": HELD, "server_at_the_end": SERVERS}.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, values[:shown])


def suspend(server: Server, seconds: float) -> None:
    """It accepts connections, and answers nothing."""
    server.pause()
    time.sleep(seconds)
    server.resume()
    server.wait()


def kill(server: Server, seconds: float) -> None:
    """kill -9 of the server and all its children; it is started again later."""
    server.kill()
    time.sleep(seconds)
    server.start()


def named(up: Services, name: str) -> Server:
    return next(server for server in up.all if server.name == name)


def held(stage: str, up: Services, take_away: Callable[[Server, float], None], seconds: float) -> Any:
    """A run in whose stage every server has been away."""
    hold(stage)
    process = start("run")
    wait_until_held(process)
    for server in up.all:
        take_away(server, seconds)
        assert process.poll() is None, f"{server.name}: {finished(process).stdout}"
    return process


def check_end(process: Any) -> None:
    """A run may end with a sentence where a server was away at the wrong moment; another run finishes what is left."""
    done = finished(process, 600)
    assert "Traceback" not in done.stdout, done.stdout
    assert done.returncode in (0, 2), done.stdout
    assert "Version 1 is" in trueline("run")


@pytest.mark.timeout(1200)
def test_a_run_outlasts_every_server(up: Services, checkout: Path, outage: float) -> None:
    process = held("gate", up, suspend, outage)
    let_go()
    check_end(process)
    experiment = load_params().registry.experiment
    store = open_store(experiment)
    [recorded] = [run for run in store.client.search_runs([store.experiment_id]) if run.info.run_name == "gate"]
    assert recorded.info.status == "FINISHED"
    assert len(store.client.get_metric_history(recorded.info.run_id, "loss")) == recorded.data.metrics["final/steps"]


@pytest.mark.timeout(1200)
def test_a_run_is_cancelled_after_every_server_was_away(
    held_stage: str, up: Services, checkout: Path, outage: float
) -> None:
    process = held(held_stage, up, kill, outage)
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}, "sort": "START_TIME_DESC", "limit": 1}
    with httpx.Client(base_url=up.environment()["PREFECT_API_URL"], timeout=60) as api:
        [run] = api.post("/flow_runs/filter", json=running).json()
        api.post(f"/flow_runs/{run['id']}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()
        done = finished(process, 60)
        assert "; run again to continue\n" in done.stdout, done.stdout
        assert eventually(lambda: api.get(f"/flow_runs/{run['id']}").json()["state_type"] == "CANCELLED", 60)
    Path("holding").unlink()
    time.sleep(1)
    assert not Path("holding").exists()  # no stage goes on
    let_go()
    assert "Version 1 is" in trueline("run")


@pytest.mark.timeout(1200)
def test_a_server_that_is_away_when_the_last_stage_ends(
    server_at_the_end: str, up: Services, checkout: Path, outage: float
) -> None:
    hold("gate")
    process = start("run")
    wait_until_held(process)
    server = named(up, server_at_the_end)
    server.kill()
    let_go()
    time.sleep(outage)
    server.start()
    check_end(process)


def test_a_run_can_be_ended_though_servers_hang(up: Services, checkout: Path) -> None:
    hold("gate")
    process = start("run")
    wait_until_held(process)
    hanging = [named(up, name) for name in ("Prefect", "MLflow")]
    for server in hanging:
        server.pause()
    time.sleep(2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    done = finished(process, 60)
    seconds = time.monotonic() - began
    for server in hanging:
        server.resume()
        server.wait()

    print(f"ended {seconds:.0f} seconds after SIGTERM")
    assert done.returncode == 143, done.stdout
    assert "; run again to continue\n" in done.stdout, done.stdout
    assert seconds < 30
    let_go()
    assert "Version 1 is" in trueline("run")
