"""A server that hangs holds up no start, no step and no end of a stage, and gets everything later."""

import socket
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import stages
from tasks.registry.lineage import sync
from tasks.registry.mlflow_runs import send_queue, store, tracking
from tasks.registry.mlflow_runs.send_queue import Message
from tasks.registry.mlflow_runs.store import open_store
from tasks.settings.params import load_params
from tests.registry.test_tracking import only_run

ROWS = [{"prompt": "a", "answer": "b"}]


@pytest.fixture
def hanging(monkeypatch):
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(store, "ANSWER_SECONDS", 0.3)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture
def stuck(tracked, monkeypatch):
    """A way to have what is sent to MLflow stand still, and to let it go on."""
    opened, send_message = threading.Event(), send_queue.send_message
    monkeypatch.setattr(send_queue, "send_message", lambda *messages: opened.wait(60) and send_message(*messages))
    monkeypatch.setattr(tracking, "PATIENCE_WITH_A_FILE", 0.2)
    yield opened.set
    opened.set()


def unsent():
    return list(Path(".trueline/unsent").glob("*"))


@pytest.mark.parametrize("command", [lambda params: tracking.run("sft", params).__enter__(), sync.sync])
def test_a_server_that_hangs_from_the_start_is_reported_in_time(tracked, hanging, command):
    params, began = load_params(), time.monotonic()
    with pytest.raises(
        InputError, match=r"^MLflow at http://127\.0\.0\.1:\d+ has not answered for 0 seconds: restart it"
    ):
        command(params)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (SystemExit(143), "KILLED")])
def test_what_a_hanging_server_did_not_take_is_sent_by_the_next_command(stuck, caplog, error, status):
    params, began = load_params(), time.monotonic()
    try:
        with tracking.run("sft", params, inputs=[Path("data/validate/demonstrations.jsonl")]) as run:
            for step in range(1000):
                run.log(step, {"loss": float(step)})
            run.table("samples", ROWS)
            run.model(Path("models/sft"))
            if error:
                raise error
    except SystemExit:
        pass
    assert time.monotonic() - began < 10
    assert "run trueline sync when it is back, to send the rest" in caplog.text
    assert only_run().info.status == "RUNNING"
    assert [path.stem for path in unsent()] == [run.id]

    stuck()
    linked = sync.sync(params)["stages"][0]
    assert unsent() == []
    client = open_store("trueline").client
    found, md5 = client.get_run(run.id), stages.output_hash("sft", Path("models/sft"))
    assert found.info.status == status
    history = client.get_metric_history(run.id, "loss")
    assert [(value.step, value.value) for value in history] == [(step, step) for step in range(1000)]
    assert [file.path for file in client.list_artifacts(run.id)] == ["samples.json"]
    assert client.get_logged_model(found.data.tags["model_id"]).tags["md5"] == md5
    assert found.inputs and len(found.inputs.dataset_inputs) == 1
    assert linked["status"] == ("restored" if error else "ran")
    assert (linked["run_id"] == run.id) is not bool(error)


def test_what_was_sent_in_part_is_not_sent_twice(tracked):
    opened = open_store("trueline")
    run = tracking.start(opened, "sft", stages.lock_key("sft"), {}, {})
    messages = [
        Message("metrics", [["loss", 1.0, 1000, 0], ["loss", float("nan"), 2000, 1]]),
        Message("table", {"name": "samples", "columns": {"prompt": ["a"]}}),
        Message("model", {"folder": "models/sft", "md5": None, "key": None}),
        Message("end", {"status": "FINISHED", "end_time": 5000}),
    ]
    for message in messages:
        send_queue.send_message(opened, run.id, message)
    before = opened.client.get_run(run.id).to_dictionary()
    send_queue.save_unsent(opened, run.id, messages)
    send_queue.send_saved(opened)
    assert opened.client.get_run(run.id).to_dictionary()["data"]["tags"] == before["data"]["tags"]
    assert len(opened.client.get_metric_history(run.id, "loss")) == 2
    assert len(opened.client.search_logged_models([opened.experiment_id])) == 1
    assert opened.client.get_run(run.id).info.end_time == 5000


@pytest.mark.parametrize(
    ("refusal", "tries"),
    [
        ("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, datasets.name", 2),
        ('duplicate key value violates unique constraint "dataset_uk"', 2),
        ("Invalid value", 1),
    ],
)
def test_a_data_set_that_another_run_stores_at_the_same_time_is_found_at_the_second_try(
    tracked, monkeypatch, refusal, tries
):
    opened = open_store("trueline")
    run = tracking.start(opened, "sft", stages.lock_key("sft"), {}, {})
    asked, log_inputs = [], opened.client.log_inputs

    def refuse_once(*given):
        asked.append(given)
        if len(asked) == 1:
            raise MlflowException(refusal)
        log_inputs(*given)

    monkeypatch.setattr(opened.client, "log_inputs", refuse_once)
    data = {"name": "d.jsonl", "digest": "0", "source_type": "local", "source": "{}"}
    with nullcontext() if tries > 1 else pytest.raises(MlflowException, match=refusal):
        send_queue.send_message(opened, run.id, Message("inputs", [data]))
    assert len(asked) == tries
    found = opened.client.get_run(run.id).inputs
    assert found and len(found.dataset_inputs) == tries - 1


def test_what_another_server_did_not_take_waits_for_that(tracked):
    opened = open_store("trueline")
    elsewhere = opened._replace(uri="http://elsewhere")
    send_queue.save_unsent(elsewhere, "0" * 32, [Message("end", {"status": "KILLED", "end_time": 1})])
    send_queue.send_saved(opened)
    assert len(unsent()) == 1


def test_what_was_for_a_run_that_is_gone_is_dropped(tracked, caplog):
    opened = open_store("trueline")
    send_queue.save_unsent(opened, "0" * 32, [Message("end", {"status": "KILLED", "end_time": 1})])
    send_queue.send_saved(opened)
    assert unsent() == []
    assert "are dropped" in caplog.text


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: "", lambda text: text.replace("kind", "kjnd")])
def test_a_saved_file_that_is_damaged_is_reported_and_set_aside(tracked, caplog, damage):
    opened = open_store("trueline")
    send_queue.save_unsent(opened, "0" * 32, [Message("end", {"status": "KILLED", "end_time": 1})])
    [path] = unsent()
    path.write_text(damage(path.read_text()))
    send_queue.send_saved(opened)
    assert [path.suffix for path in unsent()] == [".damaged"]
    assert "are damaged and not sent: see" in caplog.text


@pytest.mark.parametrize(
    ("uri", "cure"),
    [
        ("postgresql://ada:secret@127.0.0.1/mlflow", "psycopg2, which is not installed: make production,"),
        ("mysql://ada:secret@127.0.0.1/mlflow", "MySQLdb, which is not installed: {}mysqlclient,"),
        ("mysql+pymysql://ada:secret@127.0.0.1/mlflow", "pymysql, which is not installed: {}pymysql,"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(tracked, monkeypatch, uri, cure):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setitem(sys.modules, cure.partition(",")[0], None)  # wherever it happens to be installed
    with pytest.raises(InputError) as seen:
        open_store("trueline")
    assert cure.format(".venv/bin/pip install ") in str(seen.value)
    assert "secret" not in str(seen.value)
