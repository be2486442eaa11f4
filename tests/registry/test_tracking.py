"""A stage's run in MLflow: what it carries, how it ends, and what happens when the server is away."""

import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL
from urllib.request import urlopen

import pytest
from filelock import FileLock
from mlflow.exceptions import MlflowException

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import stages
from tasks.registry.lineage import sync
from tasks.registry.mlflow_runs import send_queue, tracking
from tasks.registry.mlflow_runs.store import open_store, tracking_uri
from tasks.registry.mlflow_runs.system_metrics import hardware
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import shell

# Logs while the server is stopped, and is stopped itself.
STAGE = """
import sys
from tasks.registry.mlflow_runs import tracking
from tasks.stage import main

def sft(params):
    with tracking.run("sft", params) as run:
        print("ready", flush=True)
        for step in range(1000):
            run.log(step, {"loss": step})
            import time; time.sleep(0.002)
        print("logged", flush=True)
        time.sleep(300)

main(sft)
"""
INPUT = Path("data/validate/demonstrations.jsonl")


def only_run():
    store = open_store("trueline")
    (found,) = store.client.search_runs([store.experiment_id])
    return found


def eventually(look):
    deadline = time.monotonic() + 120
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def params(tracked):
    return load_params()


def test_a_run_carries_what_defends_a_model(tracked, params):
    Path("requirements.lock").write_text("torch==2.13.0\n")
    with tracking.run("sft", params, inputs=[INPUT]) as run:
        run.log(0, {"loss": 2.0})
        run.log(1, {"loss": 1.0, "learning_rate": 0.5})
        run.model(Path("models/sft"))
        run.summary({"loss": 0.5, "split": {"rows": 3, "tax & law/a": 2}, "note": "text is no figure"})
    found = only_run()
    tags = found.data.tags
    assert found.info.status == "FINISHED"
    assert found.info.run_name == tags["stage"] == "sft"
    assert tags["key"] == stages.lock_key("sft")
    assert tags["data"] == stages.output_hash("validate", Path("data/validate"))
    assert tags["git_commit"] == shell("git", "rev-parse", "HEAD", cwd=tracked).stdout.strip()
    assert tags["lock_file"] == hashlib.sha256(b"torch==2.13.0\n").hexdigest()
    assert (tags["seed"], tags["status"]) == (str(params.seed), "ran")
    assert tags["device"] in ("auto", "cpu", "cuda")
    assert tags["hardware"] == hardware(tags["device"])
    assert json.loads(tags["outputs"]) == {"models/sft": stages.output_hash("sft", Path("models/sft"))}
    assert float(found.data.params["sft.learning_rate"]) == params.sft.learning_rate
    assert "ppo.clip" not in found.data.params
    figures = {name: value for name, value in found.data.metrics.items() if not name.startswith("system/")}
    assert figures == {
        "loss": 1.0,
        "learning_rate": 0.5,
        "final/loss": 0.5,
        "final/split.rows": 3.0,
        "final/split.tax _ law_a": 2,
    }
    assert "system/cpu_utilization_percentage" in found.data.metrics
    assert found.data.metrics["system/peak_memory_megabytes"] > 10


def test_no_source_is_named_so_that_its_figures_are_lost(tracked, params):
    long = "data/" + "x" * 300
    names = ["a/b (v2).jsonl", "a_b _v2_.jsonl", "org/name", f"{long}1", f"{long}2"]
    with tracking.run("reward", params) as run:
        run.summary({"accuracy_by_source": {name: {"value": place} for place, name in enumerate(names)}})
    found = {name: value for name, value in only_run().data.metrics.items() if name.startswith("final/")}
    plain, alike, hub, *cut = sorted(found, key=found.__getitem__)
    assert plain == "final/accuracy_by_source.a_b _v2_.jsonl.value"
    # the first characters of what sha256sum says of accuracy_by_source.a_b _v2_.jsonl.value
    assert alike == f"{plain} f5a2e04c"
    assert hub == "final/accuracy_by_source.org_name.value"
    assert [len(name) for name in cut] == [250, 250]
    assert sorted(found.values()) == [0, 1, 2, 3, 4]


def test_the_data_are_inputs_by_their_content(tracked, params):
    with tracking.run("sft", params, inputs=[INPUT]):
        pass
    (dataset,) = [item.dataset for item in only_run().inputs.dataset_inputs]
    assert dataset.name == "demonstrations.jsonl"
    assert dataset.digest == hashlib.md5(INPUT.read_bytes()).hexdigest()
    assert json.loads(dataset.source) == {"uri": "data/validate/demonstrations.jsonl"}


def test_the_model_is_saved_by_reference(tracked, params):
    with tracking.run("sft", params) as run:
        run.model(Path("models/sft"))
    client = open_store("trueline").client
    (output,) = only_run().outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.tags["md5"] == stages.output_hash("sft", Path("models/sft"))
    assert model.tags["path"] == "models/sft"
    assert not list(tracked.glob("mlruns/**/*content*"))


def test_samples_are_saved_to_read(tracked, params):
    with tracking.run("evaluate", params) as run:
        run.table("samples", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}])
        run.table("none", [])
    (saved,) = tracked.glob("mlruns/**/samples.json")
    assert json.loads(saved.read_text())["data"] == [["a", "b"], ["c", "d"]]


def test_many_steps_are_sent_together(tracked, params, monkeypatch):
    requests: list[list[str]] = []
    with tracking.run("sft", params) as run:
        monkeypatch.setattr(
            run._store.client, "log_batch", lambda _, metrics: requests.append([metric.key for metric in metrics])
        )
        for step in range(400):
            run.log(step, {f"metric_{number}": 1.0 for number in range(6)})
    sizes = [sum(name.startswith("metric_") for name in names) for names in requests]
    assert sum(sizes) == 400 * 6
    assert max(map(len, requests)) <= 1000
    assert len(requests) <= 12  # of 200 rows each, 1200 values are two requests; a busy machine may begin one early


def test_uncommitted_code_is_reported_but_what_runs_write_is_not(tracked, params):
    Path("dvc.lock").write_text(Path("dvc.lock").read_text() + "# rewritten\n")
    with tracking.run("sft", params):
        pass
    assert only_run().data.tags["git_dirty"] == "false"
    Path("make.py").write_text(Path("make.py").read_text() + "# changed\n")
    with tracking.run("prepare", params):
        pass
    store = open_store("trueline")
    (second,) = store.client.search_runs([store.experiment_id], "tags.stage = 'prepare'")
    assert second.data.tags["git_dirty"] == "true"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("a bug"), "FAILED"), (SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_ends_as_its_stage_did(tracked, params, error, status):
    with pytest.raises(type(error)), tracking.run("sft", params) as run:
        run.log(0, {"loss": 2.0})
        raise error
    found = only_run()
    assert found.info.status == status
    assert found.data.metrics["loss"] == 2.0


def test_a_run_whose_process_was_killed_is_ended_when_the_stage_runs_again(tracked, params):
    gone = subprocess.Popen(["true"])
    gone.wait()
    store = open_store("trueline")
    process = {"process": f"{platform.node()}:{gone.pid}"}
    killed = tracking.start(store, "sft", stages.lock_key("sft"), {}, process)
    elsewhere = tracking.start(store, "sft", stages.lock_key("sft"), {}, {"process": f"another-machine:{gone.pid}"})
    with tracking.run("sft", params):
        assert store.client.get_run(killed.id).info.status == "KILLED"
        assert store.client.get_run(elsewhere.id).info.status == "RUNNING"


def test_a_run_of_a_living_process_is_left_alone(tracked, params):
    with tracking.run("sft", params), tracking.run("sft", params):
        store = open_store("trueline")
        assert {each.info.status for each in store.client.search_runs([store.experiment_id])} == {"RUNNING"}


def test_outside_dvc_a_stage_is_tracked_without_a_key(tracked, params, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
    monkeypatch.chdir(tmp_path)
    with tracking.run("sft", params) as run:
        Path("models/sft").mkdir(parents=True)
        run.model(Path("models/sft"))
    found = only_run()
    assert "key" not in found.data.tags
    assert "outputs" not in found.data.tags
    assert found.data.params["sft.epochs"] == str(params.sft.epochs)


def test_a_server_that_is_not_there_is_named_with_the_cure(params, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:hunter2@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        InputError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used .*MLFLOW_TRACKING_URI"
    ) as seen:
        tracking.run("sft", params).__enter__()
    assert time.monotonic() - started < 10
    assert "hunter2" not in str(seen.value)
    assert "anna" not in str(seen.value)


def test_a_deleted_experiment_is_named_with_the_cure(params):
    store = open_store("trueline")
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match=r"experiment trueline has been deleted: run mlflow experiments restore"):
        tracking.run("sft", params).__enter__()


def test_a_server_that_goes_away_costs_a_warning_and_no_metric(params, monkeypatch, caplog):
    with tracking.run("sft", params) as run:
        send, away = run._store.client.log_batch, [True]

        def log_batch(run_id, metrics):
            if away[0]:
                raise MlflowException("API request failed with exception connection refused")
            send(run_id, metrics)

        monkeypatch.setattr(run._store.client, "log_batch", log_batch)
        for step in range(400):
            run.log(step, {"loss": float(step)})
        eventually(lambda: "MLflow does not answer" in caplog.text)
        away[0] = False
    assert caplog.text.count("MLflow does not answer") == 1
    store = open_store("trueline")
    assert len(store.client.get_metric_history(only_run().info.run_id, "loss")) == 400


def test_a_server_that_stays_away_is_reported_at_the_end(params, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "PATIENCE_WITH_A_FILE", 0.3)
    with tracking.run("sft", params) as run:

        def refused(*_arguments, **_names):
            raise MlflowException("API request failed with exception connection refused")

        monkeypatch.setattr(run._store.client, "log_batch", refused)
        monkeypatch.setattr(run._store.client, "set_terminated", refused)
        run.log(0, {"loss": 1.0})
    assert "run trueline sync when it is back" in caplog.text


def test_a_request_that_is_wrong_is_a_bug(params):
    with pytest.raises(MlflowException, match="Invalid value"), tracking.run("sft", params) as run:
        run.log(0, {"no name like this!": 1.0})
    assert only_run().info.status == "FAILED"


def test_a_temporary_copy_uses_the_database_of_the_main_checkout(tracked, params, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tracked))
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    with tracking.run("sft", params):
        pass
    assert list(copy.iterdir()) == []
    monkeypatch.chdir(tracked)
    assert only_run().data.tags["stage"] == "sft"
    assert only_run().info.artifact_uri.startswith((tracked / "mlruns").as_uri())


def test_one_process_at_a_time_opens_the_database(tracked):
    with FileLock(tracked / ".trueline" / "mlflow.lock"):
        other = threading.Thread(target=open_store, args=["trueline"])
        other.start()
        other.join(timeout=0.5)
        assert other.is_alive()
    other.join(timeout=60)
    assert not other.is_alive()


def test_telemetry_is_off(tracked):
    open_store("trueline")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A way to start and to stop a real server, always at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    home = tmp_path / "server"
    home.mkdir()
    options = [
        "--backend-store-uri",
        f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination",
        str(home),
        "--workers=1",
    ]
    command = [sys.executable, "-m", "mlflow", "server", f"--port={address.rpartition(':')[2]}", *options]
    running = []

    def start():
        running.append(subprocess.Popen(command, cwd=home, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urlopen(f"http://{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError("the server does not start")

    def stop():
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        running.clear()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
    yield start, stop, lambda number: os.killpg(running[0].pid, number)
    stop()


@pytest.mark.slow
@pytest.mark.timeout(600)  # it starts twice, and on a busy machine takes a minute each time
def test_a_real_server_that_is_stopped_and_started_again_gets_all_metrics(server, params, monkeypatch, caplog):
    start, stop, pause = server
    monkeypatch.setattr(send_queue, "SEND_EVERY_SECONDS", 0.0)
    start()
    with tracking.run("sft", params) as run:
        run.log(1, {"loss": 1.0})
        stop()
        began = time.monotonic()
        for step in range(2, 400):
            run.log(step, {"loss": 1 / step})
        assert time.monotonic() - began < 5  # nobody waits for a request
        eventually(lambda: "MLflow does not answer" in caplog.text)
        start()
        monkeypatch.setattr(send_queue, "RETRY_AFTER_SECONDS", 0.0)
        run.log(400, {"loss": 1 / 400})
    history = run._store.client.get_metric_history(run.id, "loss")
    assert [(value.step, value.value) for value in history] == [(step, 1 / step) for step in range(1, 401)]
    assert run._store.client.get_run(run.id).info.status == "FINISHED"
    assert caplog.text.count("MLflow does not answer") == 1

    champion.promote(params)  # a turn at the registry goes through the server, too
    with subprocess.Popen([sys.executable, "-c", STAGE], stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout and stage.stdout.readline() == "ready\n"
        pause(signal.SIGSTOP)
        assert stage.stdout.readline() == "logged\n"
        began = time.monotonic()
        stage.terminate()
        assert stage.wait() == 143
        assert time.monotonic() - began < 12
    pause(signal.SIGCONT)
    sync.sync(params)
    (killed,) = run._store.client.search_runs([run._store.experiment_id], "attributes.status = 'KILLED'")
    assert killed.data.metrics["loss"] == 999
