"""Which changes of sources start a run: real files, with the run itself and the clock replaced."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.events import snapshots, watch
from flows.events.starting import Outcome
from flows.events.watch import Finding, Watch, one_watch
from flows.events.watch_state import WATCH_STATE
from flows.processes.locks import one_flow_at_a_time
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import GraphStatus

QUIET = 60.0
ROWS = Path("rows.jsonl")
FOLDER = Path("folder")


class Bench:
    """A watch whose clock moves on demand and whose runs are recorded."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.outcome: Outcome = "succeeded"
        self.ahead = 100.0  # seconds of the clock before the real one, so that files are not new
        self.changed: dict[str, str] = {}  # what DVC says of dependencies
        self.watch: Watch | None = None

    def start(self, number: int) -> Outcome:
        self.runs.append(number)
        return self.outcome

    def look(self, after: float = 0.0) -> Finding:
        self.ahead += after
        self.watch = self.watch or Watch(self.start, QUIET)
        return self.watch.step().finding

    def restart(self, *, again: bool = False) -> None:
        self.watch = Watch(self.start, QUIET, again=again)

    def resolve(self) -> Finding:
        """Look, and once more after the quiet time."""
        found = self.look()
        return self.look(QUIET) if found == "changing" else found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A checkout of a file and a folder, which has been seen once."""
    monkeypatch.chdir(tmp_path)
    ROWS.write_text("one\n")
    FOLDER.mkdir()
    (FOLDER / "a.jsonl").write_text("a\n")
    bench = Bench()
    named = {"prepare.preferences.source": "rows.jsonl", "prepare.prompts.source": "folder"}
    monkeypatch.setattr(watch, "load_params", lambda: None)
    monkeypatch.setattr(watch, "sources", lambda _params: named)
    monkeypatch.setattr(
        watch, "graph_status", lambda: GraphStatus({"prepare": [{"changed deps": bench.changed}]}, {"prepare": set()})
    )
    monkeypatch.setattr(snapshots, "now", lambda: time.time() + bench.ahead)
    assert bench.resolve() == "unchanged"
    return bench


def test_new_content_starts_one_run_once_it_is_quiet(bench: Bench) -> None:
    ROWS.write_text("two\n")
    assert bench.look() == "changing"
    assert bench.look(QUIET - 1) == "changing"
    with ROWS.open("a") as file:
        file.write("three\n")
    assert bench.look(2) == "changing"  # from the second change on
    assert bench.look(QUIET - 1) == "changing"
    assert bench.runs == []
    assert bench.look(2) == "ran"
    assert bench.look(1000) == "unchanged"
    assert bench.runs == [1]


@pytest.mark.parametrize(
    "write",
    [
        ROWS.touch,
        lambda: ROWS.write_text("one\n"),
        lambda: (ROWS.rename("aside"), Path("aside").rename(ROWS)),
        lambda: (shutil.copy(ROWS, "copy"), Path("copy").replace(ROWS)),
        lambda: (shutil.copytree(FOLDER, "copy"), FOLDER.rename("aside"), Path("copy").rename(FOLDER)),
    ],
    ids=["touch", "rewritten", "moved back", "replaced by a copy", "folder replaced"],
)
def test_equal_content_starts_none(bench: Bench, write: Callable[[], object]) -> None:
    write()
    assert bench.resolve() == "equal"
    assert bench.look(1) == "unchanged"
    assert bench.runs == []


@pytest.mark.parametrize(
    "write",
    [
        lambda: (FOLDER / "b.jsonl").write_text("b\n"),
        lambda: (FOLDER / "a.jsonl").rename(FOLDER / "b.jsonl"),
        lambda: (FOLDER / "a.jsonl").write_text("b\n"),
        lambda: ROWS.write_text("eno\n"),
    ],
    ids=["new file", "other name", "other content", "same size"],
)
def test_any_change_of_content_counts(bench: Bench, write: Callable[[], object]) -> None:
    write()
    assert bench.resolve() == "ran"
    assert bench.runs == [1]


def test_a_change_that_keeps_size_and_time_is_seen(bench: Bench) -> None:
    times = ROWS.stat()
    ROWS.write_text("eno\n")
    os.utime(ROWS, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert bench.resolve() == "ran"


def test_files_that_nothing_reads_do_not_count(bench: Bench) -> None:
    (FOLDER / ".a.jsonl.swp").write_text("half")
    (FOLDER / "__pycache__").mkdir()
    (FOLDER / "__pycache__" / "a.pyc").write_text("x")

    assert bench.look() == "unchanged"


def test_a_change_and_back_starts_two_runs(bench: Bench) -> None:
    for text in ("two\n", "one\n"):
        ROWS.write_text(text)
        assert bench.resolve() == "ran"
    assert bench.runs == [1, 2]


def test_a_restart_misses_no_change_and_repeats_none(bench: Bench) -> None:
    ROWS.write_text("two\n")
    bench.restart()
    assert bench.resolve() == "ran"
    bench.restart()
    assert bench.look() == "unchanged"
    assert bench.runs == [1]


def test_a_kill_during_the_run_starts_it_again_under_its_number(bench: Bench) -> None:
    class Killed(BaseException):
        pass

    def killed(_number: int) -> Outcome:
        raise Killed

    ROWS.write_text("two\n")
    bench.watch = Watch(killed, QUIET)
    with pytest.raises(Killed):
        bench.resolve()
    ROWS.write_text("one\n")  # also if the content is as before
    bench.restart()
    assert bench.resolve() == "ran"
    assert bench.look(1) == "unchanged"
    assert bench.runs == [1]


def test_a_failed_run_starts_again_for_other_content_or_if_asked(bench: Bench) -> None:
    bench.outcome = "failed"
    ROWS.write_text("two\n")
    assert bench.resolve() == "failed"
    assert bench.look(1) == "unchanged"
    bench.restart()
    assert bench.look(1) == "unchanged"
    bench.restart(again=True)
    assert bench.look() == "failed"
    assert bench.look(1) == "unchanged"
    bench.outcome = "succeeded"
    ROWS.write_text("three\n")
    assert bench.resolve() == "ran"
    assert bench.runs == [1, 2, 3]


def test_it_waits_for_the_flow_that_runs(bench: Bench) -> None:
    ROWS.write_text("two\n")
    with one_flow_at_a_time():
        assert bench.resolve() == "waiting"
    bench.outcome = "busy"
    assert bench.look(1) == "waiting"
    bench.outcome = "succeeded"
    assert bench.look(1) == "ran"


def test_a_missing_source_starts_nothing(bench: Bench) -> None:
    ROWS.rename("aside")
    assert bench.look() == "missing"
    assert bench.look(2 * QUIET) == "missing"
    Path("aside").rename(ROWS)
    assert bench.resolve() == "equal"
    assert bench.runs == []


def test_another_path_in_the_settings_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROWS, "other.jsonl")
    monkeypatch.setattr(watch, "sources", lambda _params: {"prepare.preferences.source": "other.jsonl"})
    assert bench.resolve() == "ran"


def test_the_first_watch_runs_if_dvc_says_that_a_source_has_changed(bench: Bench) -> None:
    WATCH_STATE.unlink()
    bench.changed = {"tasks/prepare.py": "modified"}
    bench.restart()
    assert bench.resolve() == "unchanged"
    WATCH_STATE.unlink()
    bench.changed = {"folder": "modified"}
    bench.restart()
    assert bench.resolve() == "ran"


def test_a_change_in_the_moment_of_the_look_is_not_missed(bench: Bench) -> None:
    """A file may be written twice within what the clock tells apart: such a look is repeated."""
    bench.ahead = -QUIET  # so that after the quiet time the file is a moment old
    ROWS.write_text("two\n")
    assert bench.resolve() == "ran"
    assert json.loads(WATCH_STATE.read_text())["sources"]["prepare.preferences.source"]["signature"] == ""
    assert bench.look(10) == "equal"
    assert bench.look(1) == "unchanged"


def test_damaged_memory(bench: Bench) -> None:
    WATCH_STATE.write_text("{}")
    with pytest.raises(InputError, match="is damaged: delete it"):
        bench.restart()


def test_one_watch_at_a_time(bench: Bench) -> None:
    with one_watch(), pytest.raises(InputError, match="trueline watch runs in this checkout already"), one_watch():
        pass
