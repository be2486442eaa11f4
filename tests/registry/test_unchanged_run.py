"""`trueline run` where nothing has changed: one look, no process of DVC's, no Prefect; and the record is as ever."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_report import page, response
from tests.registry.conftest import ROOT, STAGES, aliases
from tests.registry.test_report import give_page

pytestmark = pytest.mark.slow
# Prints the result on stdout; on stderr each program that it started, and whether it imported Prefect.
RUN = """
import sys
started = []
sys.addaudithook(lambda event, arguments: started.append(arguments[1]) if event == "subprocess.Popen" else None)
sys.argv = ["trueline", "run", "--json"]
from flows.stages import figures
from flows.cli import main
figures.HEADLINES.clear()  # the stages of these tests write other metrics
try:
    main()
finally:
    for command in started:
        print("started", *command, file=sys.stderr)
    print("prefect", "prefect" in sys.modules, file=sys.stderr)
"""
# A watch whose runs are those of RUN.
WATCH = f"""
import sys
from flows.events import starting
starting.COMMAND = (sys.executable, "-c", {RUN!r})
from flows.cli import main
main()
"""


@pytest.fixture
def checkout(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished pipeline with a gate that writes a page, and the files that its settings name as sources."""
    shutil.copytree(ROOT / "infra", "infra")
    Path("exclude.txt").touch()
    give_page(page(responses=[response("a", 2.0, 1.0)]))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tracked


def run() -> tuple[dict[str, Any], list[str]]:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def test_an_unchanged_run_starts_no_dvc_and_no_prefect_and_registers_and_promotes(checkout: Path) -> None:
    lock = Path("dvc.lock").read_bytes()
    for verdict in (True, False):  # promoted by the first, champion already at the second
        result, printed = run()

        assert {stage["outcome"] for stage in result["stages"]} == {"reused"}
        assert len(result["stages"]) == len(STAGES)
        assert result["promotion"]["promoted"] is verdict
        assert [line for line in printed if sys.executable in line] == []
        assert "prefect False" in printed
    assert aliases()["trueline-policy"] == {"champion": 1}
    assert Path(".trueline/report.html").exists()
    assert Path("dvc.lock").read_bytes() == lock


def test_where_a_stage_is_stale_only_it_is_started_and_prefect_keeps_a_record(checkout: Path) -> None:
    shutil.rmtree("models/reward")
    result, printed = run()

    assert {stage["outcome"] for stage in result["stages"]} == {"reused"}  # DVC's cache has it
    assert [line.split()[-1] for line in printed if "dvc --wait-for-lock repro" in line] == ["reward"]
    assert "prefect True" in printed
    assert Path("models/reward/content.txt").exists()


def test_a_watch_starts_a_run_for_other_content_alone(checkout: Path) -> None:
    """The run itself is a real one, in which no stage is stale."""

    def look() -> list[str]:
        command = [sys.executable, "-c", WATCH, "watch", "--once", "--quiet", "0.1s", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["finding"] for line in done.stdout.splitlines()]

    assert look() == ["unchanged"]
    Path("exclude.txt").write_text("# nothing\n")
    assert look() == ["ran"]
