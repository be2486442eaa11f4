"""A password in an address, and a key in the environment, are in nothing that anybody reads."""

import json
import os
import shutil
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
from tests.registry.conftest import ROOT, shell
from tests.registry.test_report import give_page

PASSWORD, KEY = "hush-hush/4711", "sk-very-secret"
SPELLINGS = (PASSWORD, "hush-hush%2F4711", KEY, "hush-hush", "aHVzaC1odXNo")  # the last in base64
SECRETS = {
    "TRUELINE_JUDGE_API_KEY": KEY,
    "TRUELINE_NOTIFY": "json://me:hush-hush@127.0.0.1:9/",
    "HTTPS_PROXY": "http://me:hush-hush@127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": KEY,
    "PREFECT_API_KEY": KEY,
    "PREFECT_API_AUTH_STRING": "me:hush-hush",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://me:hush-hush@127.0.0.1:9/a",
}
GIT_REMOTE = "https://me:hush-hush@127.0.0.1:9/a.git"
DVC_REMOTES = """
['remote "web"']
    url = https://me:hush-hush@127.0.0.1:9/dvc
['remote "server"']
    url = ssh://me:hush-hush@127.0.0.1:9/dvc
    password = hush-hush
['remote "bucket"']
    url = s3://bucket/dvc
    endpointurl = http://me:hush-hush@127.0.0.1:9
    access_key_id = me
    secret_access_key = sk-very-secret
"""
# Where a user has put one; everywhere else it is a leak.
OWN_FILES = (".dvc/config.local", ".git/config", "keys")


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
            for variable, value in SECRETS.items():
                monkeypatch.setenv(variable, value)
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


def write_addresses(folder: Path) -> None:
    """Give git's and DVC's remotes, and the keys of a server, which all are read from files."""
    shell("git", "remote", "add", "origin", GIT_REMOTE, cwd=folder)
    branch = shell("git", "branch", "--show-current", cwd=folder).stdout.strip()
    for key, value in {"remote": "origin", "merge": f"refs/heads/{branch}"}.items():
        shell("git", "config", f"branch.{branch}.{key}", value, cwd=folder)
    for key, value in {"name": "me", "email": "me@example.org"}.items():
        shell("git", "config", f"user.{key}", value, cwd=folder)
    shell("git", "update-ref", f"refs/remotes/origin/{branch}", "HEAD", cwd=folder)
    Path(".dvc/config.local").write_text(DVC_REMOTES)
    Path("keys").write_text(f"me:{KEY}")


def use_remote(name: str) -> None:
    Path(".dvc/config").write_text(f"[core]\n    remote = {name}\n")


@pytest.mark.slow
def test_no_output_file_log_tag_or_link_holds_a_secret(repository, address, monkeypatch, capfd, caplog) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setattr(sys, "argv", sys.argv)
    give_page(page(responses=[response("a", 2.0, 1.0)]))
    write_addresses(repository)
    shutil.copytree(ROOT / "infra", "infra")
    shutil.copy(ROOT / "exclude.txt", "exclude.txt")
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
    for remote in ("server", "bucket", "web"):  # the last is asked by the run, too
        use_remote(remote)
        printed += trueline(capfd, "gc")
    for command in (
        "publish",
        "backup saved",
        "merge",
        "deploy --pool p",
        "notify --test",
        "serve --api-keys keys --port 0",
    ):
        printed += trueline(capfd, *command.split())
    assert "DVC's remote server cannot be asked" in printed
    assert "git fetch failed" in printed
    assert "--git holds a password" in printed
    Path("figures.json").write_text(json.dumps(json.loads(Path("figures.json").read_text()) | {"content": 2}))
    failed = trueline(capfd, "run")  # which neither DVC's remote nor Prefect's database answers
    assert "the local Prefect server did not start (" in failed
    assert "correct PREFECT_API_DATABASE_CONNECTION_URL" in failed
    printed += failed
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
    files = [path for path in Path().rglob("*") if path.is_file() and path.as_posix() not in OWN_FILES]
    texts = [path.read_bytes().decode("utf-8", "replace") for path in files]
    assert {".trueline/report.html", "dvc.lock", "decisions.jsonl"} <= {path.as_posix() for path in files}
    assert len(records) > 5
    for name, text in zip(("printed", "logs", *records, *files), (printed, caplog.text, *records, *texts), strict=True):
        assert not any(secret in text for secret in SPELLINGS), name


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
