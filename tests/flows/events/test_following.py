"""The loop of `trueline watch`, and how it starts runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.events import following, starting
from flows.events.following import follow, seconds_of
from flows.events.starting import run_here
from flows.events.watch import Step
from flows.processes.locks import one_flow_at_a_time
from tasks.common.errors import InputError


class Script:
    """Stands for a watch: gives these steps one after another, then interrupts; an exception is raised."""

    def __init__(self, steps: list[Step | Exception]) -> None:
        self.steps = steps

    def __call__(self, *_arguments: object, **_named: object) -> "Script":
        return self

    def step(self) -> Step:
        if not self.steps:
            raise KeyboardInterrupt
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step | Exception]:
    monkeypatch.chdir(tmp_path)
    steps: list[Step | Exception] = []
    monkeypatch.setattr(following, "Watch", Script(steps))
    return steps


def look(once: bool = False, as_json: bool = False) -> Step:
    return follow(0.01, 0.01, once=once, again=False, as_json=as_json)


def test_it_says_what_is_news_until_it_is_interrupted(
    script: list[Step | Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["prepare.prompts.source"]
    script += [Step("unchanged", []), Step("changing", rows), Step("changing", rows), Step("ran", rows)]
    script += [InputError("fix it"), InputError("fix it"), Step("unchanged", [])]
    with pytest.raises(KeyboardInterrupt):
        look()

    assert [line[20:] for line in capsys.readouterr().out.splitlines()] == [
        "sources: unchanged",
        "prepare.prompts.source: written; waiting until nothing changes",
        "prepare.prompts.source: changed: the run succeeded",
        "sources: fix it",
        "sources: unchanged",
    ]


def test_once_waits_the_quiet_time_and_prints_json(
    script: list[Step | Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    script += [Step("changing", ["a"]), Step("failed", ["a"])]
    assert look(once=True, as_json=True).finding == "failed"
    line = json.loads(capsys.readouterr().out)
    del line["time"]
    assert line == {"finding": "failed", "sources": ["a"], "message": ""}


def test_once_raises_what_must_be_fixed(script: list[Step | Exception]) -> None:
    script.append(InputError("fix it"))
    with pytest.raises(InputError, match="fix it"):
        look(once=True)


def test_sigterm_ends_it_as_ctrl_c_does(script: list[Step | Exception]) -> None:
    script += [Step("unchanged", [])] * 1000
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        look()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("0.5s", 0.5), ("5m", 300), ("1h", 3600)])
def test_spans_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "5 m", "1d"])
def test_spans_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is no span of time"):
        seconds_of(text)


@pytest.mark.parametrize(("code", "outcome"), [(0, "succeeded"), (1, "failed"), (2, "failed")])
def test_a_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, outcome: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(starting, "COMMAND", (sys.executable, "-c", f"raise SystemExit({code})"))

    assert run_here() == outcome


def test_a_run_that_another_flow_forestalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(starting, "COMMAND", (sys.executable, "-c", "raise SystemExit(2)"))
    with one_flow_at_a_time():
        assert run_here() == "busy"


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: Prefect reads the address when it is imported."""
    code = "from flows.events.starting import ask_server\nask_server('http://ada:pass@127.0.0.1:9/api', 1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "http://127.0.0.1:9/api starts no run (" in done.stderr
