"""A password in an address, and a key in the environment, are in nothing that anybody reads."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from flows import cli
from tasks.common.errors import InputError
from tasks.registry.lineage.report import write_report
from tasks.registry.mlflow_runs import tracking
from tasks.registry.mlflow_runs.addresses import separate_passwords
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tasks.stage import FAILURE_FILE, classify
from tests.evaluation.test_report import page, response
from tests.registry.test_report import give_page

PASSWORD, KEY = "hush-hush/4711", "sk-very-secret"
SPELLINGS = (PASSWORD, "hush-hush%2F4711", KEY, "hush-hush")


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real MLflow server, named with user and password."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = tmp_path / "server"
    home.mkdir()
    options = [f"--backend-store-uri=sqlite:///{home}/mlflow.db", f"--artifacts-destination={home}", "--workers=1"]
    command = [sys.executable, "-m", "mlflow", "server", f"--port={port}", *options]
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(
        command, cwd=home, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            deadline = time.monotonic() + 120
            while not _is_up(port) and time.monotonic() < deadline:
                time.sleep(0.1)
            for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
                monkeypatch.setenv(variable, "")  # or what is found in the address would outlast the test
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush-hush%2F4711@127.0.0.1:{port}")
            monkeypatch.setenv("TRUELINE_JUDGE_API_KEY", KEY)
            monkeypatch.setenv("PREFECT_API_KEY", KEY)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _is_up(port: int) -> bool:
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def trueline(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    sys.argv = ["trueline", *arguments]
    with suppress(SystemExit):
        cli.main()
    return "".join(capfd.readouterr())


@pytest.mark.slow
def test_no_output_file_log_tag_or_link_holds_a_secret(repository, address, monkeypatch, capfd, caplog) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setattr(sys, "argv", sys.argv)
    give_page(page(responses=[response("a", 2.0, 1.0)]))
    params = load_params()
    printed = trueline(capfd, "doctor", "--json")  # which finds the server by the address with the password
    with tracking.run("sft", params) as run:
        run.log(1, {"loss": 1.0})
        run.table("samples", [{"prompt": "a"}])
    champion.promote(params)
    written = write_report(params)
    assert written["address"].startswith(f"{address}/#/experiments/")
    for command in ("status", "status --json", "why champion", "why champion --json", "history", "sync", "report"):
        printed += trueline(capfd, *command.split())
    assert address in printed
    assert "Traceback" not in printed

    store = open_store("trueline").client
    experiment = store.get_experiment_by_name("trueline")
    assert experiment is not None
    records = [
        json.dumps([vars(run.info), run.data.to_dictionary()], default=str)
        for run in store.search_runs([experiment.experiment_id])
    ]
    records += [str(version) for version in store.search_model_versions()]
    files = [path for path in Path().rglob("*") if path.is_file() and ".git" not in path.parts]
    texts = [path.read_bytes().decode("utf-8", "replace") for path in files]
    assert {".trueline/report.html", "dvc.lock", "decisions.jsonl"} <= {path.as_posix() for path in files}
    assert len(records) > 5
    for text in (printed, caplog.text, *records, *texts):
        assert not any(secret in text for secret in SPELLINGS)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hush-hush%2F4711@127.0.0.1:9",
        "http://hush-hush@127.0.0.1:9",
        "postgresql://me:hush-hush/4711@127.0.0.1:9/db",
        "mysql+nodriver://me:hush-hush%2F4711@127.0.0.1:9/db",
        "postgresql://127.0.0.1:9/db?user=me&password=hush-hush",
        "nothing://me:hush-hush/4711@host",
        "http://me:hush-hush@[::1:9",
    ],
)
def test_a_store_that_cannot_be_used_is_named_without_its_password(tmp_path, monkeypatch, capfd, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("PGPASSWORD", "")
    monkeypatch.delenv("PGPASSWORD")  # or what is found in the address would outlast the test
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception) as refused:  # whatever it is, it is shown as a sentence
        open_store("trueline")
    kind, sentence = classify(refused.value)
    printed = sentence + "".join(capfd.readouterr())
    assert not any(secret in printed for secret in SPELLINGS)
    assert kind == "input"
    assert not FAILURE_FILE.exists()


def test_two_users_are_not_mixed_up(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush-hush@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://you:hush-hush@127.0.0.1:9")
    with pytest.raises(InputError, match="name two users"):
        open_store("trueline")


def test_user_and_password_reach_mlflow(monkeypatch) -> None:
    from mlflow.utils.credentials import read_mlflow_creds

    for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me%40home:hush%2F@hush@host:5000/a")
    separate_passwords()
    assert read_mlflow_creds() == ("me@home", "hush/@hush")
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://host:5000/a"
