"""Figures for Prometheus: what is exported, and what is left out and counted."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.inspection import metrics as module
from flows.inspection.metrics import HELP, exposition, read, write
from flows.processes.locks import one_flow_at_a_time
from flows.settings import configure
from flows.stages.last_run import recorded
from flows.stages.reproduce import StageRun
from tasks.common import progress
from tasks.common.errors import InputError
from tests.conftest import ROOT

PROMOTED: Any = {"promoted": True, "held": False, "version": 3, "champion": 3, "reasons": []}
DECISIONS = [
    {"action": "promote", "policy": {"version": 3}, "time": "2026-11-01T00:00:00+00:00"},
    {"action": "hold", "policy": {"version": 4}, "time": "2026-11-02T00:00:00+00:00"},
]
AT = datetime(2026, 11, 1, tzinfo=UTC).timestamp()


@pytest.fixture
def checkout(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with the shipped settings, whose registry has champion 3, and 4 that waits."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (repository / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    configure(["registry.publish=true"])
    found = {"champion": 3, "challenger": 4, "awaiting": [4], "error": None}
    monkeypatch.setattr(module, "registry", lambda _params: found)
    monkeypatch.setattr(module, "decisions_of", lambda _model: DECISIONS)
    return repository


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A server that counts two late runs and none else; gives the requests."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            [state] = body["flow_runs"]["state"]["name"]["any_"]
            answer = b"2" if state == "Late" else b"0"
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ada:secret")
        yield asked
        server.shutdown()


def values() -> dict[str, float]:
    """Every sample of the text, by name and labels."""
    lines = [line for line in exposition(read()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def succeed() -> None:
    with recorded() as recording:
        recording.stages += [StageRun("sft", "ran", 12.5, ""), StageRun("gate", "reused", 0.0, "")]
        recording.promotion = PROMOTED


def test_every_metric_is_exported(checkout: Path, prefect: list[Any]) -> None:
    succeed()
    progress.begin("sft")
    try:
        with one_flow_at_a_time():
            found = values()
    finally:
        progress.end()

    assert {name.partition("{")[0] for name in found} == set(HELP)
    assert found['trueline_run_last_outcome{outcome="succeeded"}'] == 1
    assert found['trueline_run_last_outcome{outcome="crashed"}'] == 0
    assert found['trueline_run_last_verdict{verdict="promoted"}'] == 1
    assert found['trueline_stage_seconds{stage="sft"}'] == 12.5
    assert found["trueline_run_active"] == 1
    assert found['trueline_queue_runs{state="Late"}'] == 2
    assert found["trueline_champion_version"] == 3
    assert found["trueline_champion_promoted_timestamp_seconds"] == AT
    assert found["trueline_versions_awaiting_approval"] == 1
    assert found['trueline_disk_free_bytes{place="cache"}'] > 0
    assert found["trueline_record_published"] == 0
    assert not any(value for name, value in found.items() if name.startswith("trueline_metrics_errors"))
    path, credentials, body = prefect[0]
    assert (path, credentials) == ("/api/flow_runs/count", "Basic YWRhOnNlY3JldA==")
    assert body["flows"] == {"name": {"any_": ["trueline"]}}


def test_what_cannot_be_read_is_left_out_and_counted(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://ada:secret@127.0.0.1:9/api")
    monkeypatch.setattr(module, "decisions_of", lambda _model: [])
    (checkout / "dvc.yaml").write_text("stages: 3")
    reading = read()
    found = values()

    assert {name for name, value in found.items() if "errors" in name and value} == {
        f'trueline_metrics_errors{{source="{source}"}}' for source in ("queue", "registry", "disks")
    }
    assert found["trueline_champion_version"] == 3
    assert "trueline_champion_promoted_timestamp_seconds" not in found
    assert 'trueline_queue_runs{state="Late"}' not in found
    assert "secret" not in str(reading.errors)
    assert "gives no count of runs" in reading.errors["queue"]
    assert "decisions.jsonl does not have the promotion of champion 3" in reading.errors["registry"]


def test_a_file_is_for_node_exporter(checkout: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.prom"):
        write(read(), Path("metrics.txt"))
    write(read(), Path("trueline.prom"))
    assert "trueline_champion_version 3.0\n" in Path("trueline.prom").read_text()
    assert [path.name for path in checkout.glob("*trueline.prom*")] == ["trueline.prom"]


@pytest.mark.slow
def test_they_are_served_on_loopback_until_asked_to_end(repository: Path) -> None:
    (repository / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    command = [sys.executable, "-m", "flows.cli", "metrics", "--serve", "0", "--every", "1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": str(ROOT)}
    ) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/metrics", line)
            assert address, line
            with urllib.request.urlopen(address[0], timeout=10) as answer:
                assert "trueline_run_active 0.0" in answer.read().decode()
            taken = subprocess.run(
                [*command[:-3], address[0].split(":")[2].removesuffix("/metrics")],
                capture_output=True,
                text=True,
                check=False,
                env={**environment, "PYTHONPATH": str(ROOT)},
            )
            assert taken.returncode == 2
            assert "cannot be served on (Address already in use)" in taken.stderr
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()
