"""Each server goes away in the middle of a stage and comes back: the run goes on, and its record is whole then."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.services.server import Server
from infra.services.services import Services
from tasks.registry.mlflow_runs.store import open_store
from tests.services.conftest import finished, hold, let_go, start, trueline, wait_until_held

Outage = Callable[[Server, float], None]


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


@pytest.mark.parametrize("take_away", [suspend, kill])
@pytest.mark.timeout(1200)
def test_a_run_outlasts_every_server(take_away: Outage, up: Services, checkout: Path, outage: float) -> None:
    hold("gate")
    process = start("run")
    wait_until_held(process)
    for server in up.all:
        take_away(server, outage)
        assert process.poll() is None, f"{server.name}: {finished(process).stdout}"
    let_go()
    done = finished(process)
    assert "Traceback" not in done.stdout
    if done.returncode:  # it may end with a sentence where a server was away at the wrong moment
        assert done.returncode == 2, done.stdout
    assert "Version 1 is" in trueline("run")  # which finishes what is left to do
    client = open_store(checkout_experiment()).client
    experiment = client.get_experiment_by_name(checkout_experiment())
    assert experiment is not None
    [recorded] = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == "gate"]
    assert recorded.info.status == "FINISHED"
    assert len(client.get_metric_history(recorded.info.run_id, "loss")) == recorded.data.metrics["final/steps"]


@pytest.mark.parametrize("name", ["Prefect", "MLflow"])
def test_a_run_can_be_ended_though_a_server_hangs(name: str, up: Services, checkout: Path) -> None:
    hold("gate")
    process = start("run")
    wait_until_held(process)
    [server] = [each for each in up.all if each.name == name]
    server.pause()
    time.sleep(2)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    done = finished(process, 60)
    seconds = time.monotonic() - began
    server.resume()
    server.wait()

    print(f"ended {seconds:.0f} seconds after SIGTERM")
    assert done.returncode == 143, done.stdout
    assert done.stdout.endswith("; run again to continue\n"), done.stdout
    assert seconds < 30
    let_go()
    assert "Version 1 is" in trueline("run")


def checkout_experiment() -> str:
    """The experiment of the working folder."""
    from tasks.settings.params import load_params

    return load_params().registry.experiment
