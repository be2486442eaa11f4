import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.prefect_server import temporary_server as server
from flows.prefect_server.address import check_reachable, credentials, named_server
from flows.prefect_server.temporary_server import local_server
from tasks.common.errors import InputError

ROOT = Path(__file__).parents[3]
# The first run of the stage meets a passing fault, the second one succeeds; then the report is linked.
FLOW = """
from flows.prefect_server.temporary_server import local_server
with local_server():
    from prefect import flow
    from prefect.client.orchestration import get_client
    from flows.pipeline import flow as module
    from flows.stages.reproduce import StageError, StageRun
    from tasks.stage import Failure
    tries = []
    def reproduce(stage):
        tries.append(stage)
        if len(tries) == 1:
            raise StageError(Failure(stage, "transient", "a connection failed"))
        return StageRun(stage, "ran", 1.0, "")
    stage = module.run_stage.with_options(name="sft", retry_delay_seconds=0)
    stage.fn = reproduce
    written = {"path": ".trueline/report.html", "address": "file:///report.html", "run_id": "abc"}
    module.write_report = lambda _params: written
    @flow
    def walk():
        outcome = stage("sft").outcome
        module.report(None)
        return outcome
    print(walk(), len(tries))
    with get_client(sync_client=True) as client:
        [run], [link] = client.read_flow_runs(), client.read_artifacts()
    print(link.key, link.data, link.flow_run_id == run.id)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_flow_runs_tries_again_and_links_its_report_on_a_server_of_its_own(tmp_path: Path) -> None:
    """All proxies are dead: nobody asks one for a server on this machine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    clean = {name: value for name, value in clean.items() if name.lower() != "no_proxy"}
    clean |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-c", FLOW]
    done = subprocess.run(
        command, cwd=tmp_path, env={**clean, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )

    assert done.stdout == "ran 2\nreport [report](file:///report.html) True\n", done.stderr
    assert done.stderr == ""  # the console belongs to the stages
    assert (tmp_path / ".trueline/prefect").is_dir()


@pytest.mark.parametrize("damage", ["notes", "cut", "none"])
def test_a_damaged_database_of_prefect_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    file = tmp_path / "prefect.db"
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with closing(sqlite3.connect(file)) as made, made:
        made.execute("CREATE TABLE runs (name)")
        made.executemany("INSERT INTO runs VALUES (?)", [("x" * 100,)] * 999)
    whole = file.read_bytes()
    spoilt = {"notes": b"notes" * 999, "cut": whole[: len(whole) // 2], "none": whole}[damage]
    file.write_bytes(spoilt)
    server._set_damaged_aside()
    [left] = tmp_path.iterdir()
    assert left.name == ("prefect.db" if damage == "none" else "prefect.db.broken")
    assert left.read_bytes() == spoilt
    assert ("is made anew" in caplog.text) == (damage != "none")


def test_a_server_that_is_named_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = "http://127.0.0.1:9/api"
    monkeypatch.setenv("PREFECT_API_URL", dead)

    with pytest.raises(
        InputError, match=f"no Prefect server answers at {dead} .*Connection refused.*: start one with make server"
    ):
        check_reachable(dead)
    with pytest.raises(InputError, match="no Prefect server answers"), local_server():
        raise AssertionError("there is no server")


class Answers(BaseHTTPRequestHandler):
    """Prefect's server: pages at every path but below /api, where a user may be wanted, if not for its health."""

    def do_GET(self) -> None:
        is_api = self.path.startswith("/api")
        is_private = self.path.startswith("/api/private") or self.path == "/api/own/admin/version"
        wants_user = is_private and "Authorization" not in self.headers
        self.send_response(401 if wants_user else 200)
        self.send_header("Content-Type", "application/json" if is_api else "text/html; charset=utf-8")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answers) as answering:
        threading.Thread(target=answering.serve_forever, args=(0.01,), daemon=True).start()
        yield answering.server_port
        answering.shutdown()


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("http://me:hush-hush@127.0.0.1:{}/api/", None),
        ("http://127.0.0.1:{}", r"\(status 200, text/html; charset=utf-8\); the address of one ends in /api: start"),
        ("http://127.0.0.1:{}/api/private", "refuses who asks: set PREFECT_API_KEY"),
        ("http://127.0.0.1:{}/api/own", "refuses who asks: set PREFECT_API_KEY"),
        ("https://127.0.0.1:{}/api", "no Prefect server answers at https://127.0.0.1:.*SSL"),
        ("127.0.0.1:{}/api", "PREFECT_API_URL is 127.0.0.1:.*, which does not begin with http:// or https://: write"),
        ("http://:{}/api", "names no host"),
        ("http://me:hush-hush@127.0.0.1:9{}9/api", "is no address .Port out of range"),
    ],
)
def test_an_address_of_prefect(monkeypatch: pytest.MonkeyPatch, port: int, path: str, fault: str | None) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    if fault is None:
        check_reachable(path.format(port))
        return
    with pytest.raises(InputError, match=fault) as refused:
        check_reachable(path.format(port))
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("name", ["PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"])
def test_a_server_that_wants_to_know_who_asks(monkeypatch: pytest.MonkeyPatch, port: int, name: str) -> None:
    monkeypatch.setenv(name, "me:hush-hush")
    check_reachable(f"http://127.0.0.1:{port}/api/private")


def test_a_blank_address_names_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "  ")
    assert named_server() is None


@pytest.mark.parametrize("is_named", [True, False])
def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool) -> None:
    """As with a database that refuses the password; the log has the whole of it."""
    monkeypatch.chdir(tmp_path)
    Path(".trueline").mkdir()
    server.SERVER_LOG.write_text(
        "Traceback\nOSError: first\nasyncpg.exceptions.InvalidPasswordError: wrong hush-hush\n\nServer stopped!\n"
    )
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL", raising=False)
    if is_named:
        monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://me:hush-hush@127.0.0.1:9/db")
    with subprocess.Popen(["true"], text=True) as ended:
        ended.wait()
        with pytest.raises(InputError) as refused:
            server._wait_until_healthy("http://127.0.0.1:9/api", ended)
    assert str(refused.value) == (
        f"the local Prefect server did not start (asyncpg.exceptions.InvalidPasswordError: wrong "
        f"{'…' if is_named else 'hush-hush'}): .trueline/prefect-server.log says more; "
        f"{'correct PREFECT_API_DATABASE_CONNECTION_URL, or unset it, and ' if is_named else ''}run again"
    )


def test_who_asks_is_said_as_prefects_own_client_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    user, key = "ada:secret", "pnu_123"
    for own_key, own_user in ((None, None), (key, None), (None, user), (key, user)):
        monkeypatch.setenv("PREFECT_API_KEY", own_key or "")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", own_user or "")
        with SyncPrefectClient("http://127.0.0.1:4200/api", api_key=own_key, auth_string=own_user) as client:
            assert credentials().get("Authorization") == client._client.headers.get("Authorization")
