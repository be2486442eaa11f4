"""Curves: rows in the file and in the run, the same after a restart."""

from pathlib import Path

import pytest

from tasks.learning.training.curves import Curve
from tests.conftest import NotedRun


def test_rows_go_to_the_file_and_to_the_run(tmp_path: Path):
    run = NotedRun()
    curve = Curve("sft", 2, run)
    curve.add(1, {"loss": 0.5, "grad_norm": 1 / 3}, "loss")
    curve.add(2, {"loss": 0.25, "grad_norm": 2.0}, "loss")
    curve.write(tmp_path / "curves" / "sft.csv")
    text = (tmp_path / "curves" / "sft.csv").read_bytes()
    assert text == b"step,loss,grad_norm\n1,0.5,0.3333333333333333\n2,0.25,2.0\n"
    assert run.rows == [(1, {"loss": 0.5, "grad_norm": 1 / 3}), (2, {"loss": 0.25, "grad_norm": 2.0})]


def test_a_restored_curve_is_whole(tmp_path: Path):
    run = NotedRun()
    curve = Curve("sft", 2, run, [{"step": 1, "loss": 0.5}])
    curve.add(2, {"loss": 0.25}, "loss")
    curve.write(tmp_path / "sft.csv")
    assert (tmp_path / "sft.csv").read_bytes() == b"step,loss\n1,0.5\n2,0.25\n"
    assert [step for step, _ in run.rows] == [1, 2]


def test_progress_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    curve = Curve("sft", 1, NotedRun())
    curve.add(1, {"loss": 0.5}, "loss")
    curve.write(tmp_path / "sft.csv")
    shown = capsys.readouterr().err
    assert "sft: 100%" in shown
    assert "loss=0.5" in shown
