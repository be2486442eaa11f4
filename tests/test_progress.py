"""What a stage says of itself while it runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.common import progress
from tasks.common.progress import (
    SECONDS_TO_STOP,
    STATUS_FILES,
    Bar,
    StageProgress,
    begin,
    end,
    request_grace,
    running,
    track,
)


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress._Current, "longest_step", 0.0)
    yield
    end()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_a_bar_is_noted_with_the_time_that_is_left(clock: list[float]) -> None:
    begin("sft")
    bar = Bar("sft", 10, "step", done=4)
    assert running() == [StageProgress(os.getpid(), "sft", "sft", 4, 10, "step", None)]
    for seconds in (3.0, 5.0):
        clock[0] += seconds
        bar.update()
    # 2 steps in 8 seconds, so 4 s a step, and 10 - 6 are left; the longest took 5 s.
    assert running() == [StageProgress(os.getpid(), "sft", "sft", 6, 10, "step", 16.0, SECONDS_TO_STOP + 2 * 5.0)]
    bar.close()


def test_the_longest_step_counts_for_later_bars_too(clock: list[float]) -> None:
    begin("sft")
    for item in track([0.0, 30.0, 0.0], "sft: held-out rows", "batch"):
        clock[0] += item
    with Bar("sft", 10, "step"):
        [note] = running()
    assert (note.doing, note.seconds_to_stop) == ("sft", SECONDS_TO_STOP + 2 * 30.0)


def test_notes_are_seldom_written(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    begin("sft")
    written = []
    monkeypatch.setattr(progress, "write_json", lambda _, note: written.append(note["done"]))
    with Bar("sft", 100, "step") as bar:
        for _ in range(16):
            clock[0] += 0.25  # exact, unlike a tenth
            bar.update()
    assert written == [0, 4, 8, 12, 16]


def test_a_stage_asks_for_more_time_and_goes(clock: list[float]) -> None:
    begin("ppo")
    request_grace(900)
    assert [note.seconds_to_stop for note in running()] == [900]
    end()
    assert running() == []
    assert list(STATUS_FILES.iterdir()) == []


def test_nothing_is_noted_outside_a_stage() -> None:
    request_grace(900)
    with Bar("evaluate: sft", 2, "answer") as bar:
        bar.update()
    assert not STATUS_FILES.exists()


def test_the_note_of_a_killed_stage_counts_no_more() -> None:
    script = "import os; from tasks.common.progress import begin; begin('sft'); os._exit(9)"
    root = Path(progress.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], check=False, env=os.environ | {"PYTHONPATH": str(root)})
    assert (STATUS_FILES / "sft.json").exists()
    assert running() == []


def test_a_number_that_has_a_new_owner_counts_no_more() -> None:
    begin("sft")
    os.utime(STATUS_FILES / "sft.json", (1, 1))  # written before this process began
    assert running() == []


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"pid": 1, "of": "another version"})])
def test_a_note_that_cannot_be_read_is_none(text: str) -> None:
    STATUS_FILES.mkdir(parents=True)
    (STATUS_FILES / "sft.json").write_text(text)
    assert running() == []


def test_a_full_disk_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "write_json", full)
    begin("sft")
    with Bar("sft", 1, "step") as bar:
        bar.update()
    assert bar.n == 1


def test_a_short_pass_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], "sft: held-out rows", "batch")) == [1, 2]
    assert capsys.readouterr().err == ""
