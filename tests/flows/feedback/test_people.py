"""An annotation sheet goes out, is filled in by several, and comes back as figures."""

import csv

import pytest

from flows.feedback import people as module
from flows.feedback.people import read_annotation_sheets, write_annotation_sheet
from tasks.common.errors import InputError
from tasks.registry.promotion.human_evaluation import Evaluation


def response(number: int, *, same: bool = False) -> dict[str, object]:
    ours, theirs = f"Good answer {number}", f"{'Good' if same else 'Bad'} answer {number}"
    prompt = [{"role": "user", "content": f"Question {number}"}]
    return {"id": f"{number:04}", "prompt": prompt, "candidate": {"answer": ours}, "opponent": {"answer": theirs}}


@pytest.fixture(autouse=True)
def evaluated(tmp_path, monkeypatch):
    """Twelve prompts, two of them with the same answer twice."""
    monkeypatch.chdir(tmp_path)
    rows = [response(number, same=number in (3, 8)) for number in range(12)]
    monkeypatch.setattr(module, "evaluation", lambda: Evaluation("key", rows, seed=7, bootstrap=500, confidence=0.95))


def fill(path, name, prefers):
    """Fill in a copy as somebody does who prefers answers with some word."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["choice"] = "left" if prefers in row["left"] else "right"
    copy = path.with_name(f"{name}.csv")
    with copy.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return copy


def test_there_and_back(tmp_path):
    path = tmp_path / "answers.csv"
    assert write_annotation_sheet(path, None) == {
        "file": str(path),
        "prompts": 10,
        "different_answers": 10,
        "same_answers": 2,
    }
    imported = read_annotation_sheets([fill(path, "ann", "Good"), fill(path, "ben", "Good"), fill(path, "cleo", "Bad")])
    won = imported.figures["vs_opponent"]
    assert (won["value"], won["wins"], won["conclusion"]) == (1, 10, "better")  # two of three
    assert (imported.figures["prompts"], imported.figures["votes"], imported.figures["same_answers"]) == (10, 30, 2)
    assert len(imported.votes) == 30
    both = read_annotation_sheets([tmp_path / "ann.csv", tmp_path / "ben.csv"]).figures
    assert (both["alpha"], both["kappa"]) == (1, 1)  # on prompts with the candidate left and right, so by no one label


def test_fewer_prompts_are_the_first_of_all(tmp_path):
    write_annotation_sheet(tmp_path / "all.csv", None)
    assert write_annotation_sheet(tmp_path / "few.csv", 4)["prompts"] == 4
    every, few = ((tmp_path / name).read_bytes().splitlines() for name in ("all.csv", "few.csv"))
    assert few == every[:5]
    assert write_annotation_sheet(tmp_path / "more.csv", 99)["prompts"] == 10
    assert read_annotation_sheets([fill(tmp_path / "few.csv", "ann", "Good")]).figures["prompts"] == 4


def test_models_that_say_the_same_leave_nothing_to_annotate(tmp_path, monkeypatch):
    rows = [response(number, same=True) for number in range(3)]
    monkeypatch.setattr(module, "evaluation", lambda: Evaluation("key", rows, 7, 500, 0.95))
    with pytest.raises(InputError, match="the same answers to all 3 prompts: there is nothing to annotate"):
        write_annotation_sheet(tmp_path / "answers.csv", None)
    assert not (tmp_path / "answers.csv").exists()
