import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import server
from flows.server import check_reachable, local_server
from tasks.common.errors import InputError

ROOT = Path(__file__).parents[2]
# The first run of the stage meets a passing fault, the second one succeeds; then the report is linked.
FLOW = """
from flows.server import local_server
with local_server():
    from prefect import flow
    from prefect.client.orchestration import get_client
    from flows import pipeline as module
    from flows.reproduce import StageError, StageRun
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

    with pytest.raises(InputError, match=f"no Prefect server answers at {dead}: start one with make server"):
        check_reachable(dead)
    with pytest.raises(InputError, match="no Prefect server answers"), local_server():
        raise AssertionError("there is no server")
