"""What the commands for annotators print."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.feedback.people import ImportedAnnotationSheets
from tasks.common.errors import InputError
from tests.cli.conftest import raising, returning

ANNOTATION_SHEET = {"file": "s.csv", "prompts": 50, "different_answers": 1200, "same_answers": 9}
WON = {"value": 0.64, "low": 0.57, "high": 0.71, "ties": 0.1, "wins": 29, "losses": 16, "sign_test": 0.0725}
FIGURES: dict[str, Any] = {
    "prompts": 50, "same_answers": 9, "votes": 80, "annotators": {"ann": 50, "[ben]": 30},
    "alpha": 0.5432, "kappa": None, "left_preferred": 0.512,
    "vs_opponent": WON | {"conclusion": "inconclusive", "prompts_needed": 1090}, "confidence": 0.95,
}  # fmt: skip


def test_a_sheet_says_what_it_holds_and_what_to_do(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def write_annotation_sheet(path: Path, prompts: int | None) -> dict[str, Any]:
        asked.append((path, prompts))
        return ANNOTATION_SHEET

    monkeypatch.setattr("flows.feedback.people.write_annotation_sheet", write_annotation_sheet)

    out = trueline("label", "sheet", "s.csv", "--prompts", "50")[1]
    assert out.startswith(
        "s.csv: 50 of the 1,200 prompts with two different answers; 9 more have the same answer twice."
    )
    assert json.loads(trueline("sheet", "s.csv", "--json")[1]) == ANNOTATION_SHEET
    assert asked == [(Path("s.csv"), 50), (Path("s.csv"), None)]
    assert trueline("sheet", "s.csv", "--prompts", "0")[0] == 2


def test_votes_for_people_and_machines(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []

    def keep(_params: Any, _key: str, figures: Any, votes: Any) -> str:
        saved.append((figures, votes))
        return "r1"

    monkeypatch.setattr(
        "flows.feedback.people.read_annotation_sheets",
        lambda paths: ImportedAnnotationSheets("key", FIGURES, [{"files": len(paths)}]),
    )
    monkeypatch.setattr("tasks.registry.promotion.human_evaluation.save_votes", keep)

    assert trueline("label", "import", "a.csv", "b.csv")[1].splitlines() == [
        "win rate    0.640 [0.570, 0.710] over the opponent: inconclusive; 1,090 prompts would decide it",
        "prompts     50: 29 won, 16 lost; sign test p 0.0725",
        "not asked   9 prompts with the same answer twice",
        "votes       80: ann 50, [ben] 30",
        "agreement   Krippendorff's alpha 0.54, Cohen's kappa —",
        "left        preferred in 0.51 of the choices; 0.5 without a bias",
        "MLflow      run r1; trueline report shows it on the page",
    ]
    assert json.loads(trueline("votes", "a.csv", "--json")[1]) == FIGURES | {"run_id": "r1"}
    assert saved == [(FIGURES, [{"files": 2}]), (FIGURES, [{"files": 1}])]


def test_votes_are_shown_where_mlflow_is_away(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flows.feedback.people.read_annotation_sheets", returning(ImportedAnnotationSheets("key", FIGURES, []))
    )
    monkeypatch.setattr(
        "tasks.registry.promotion.human_evaluation.save_votes", raising(InputError("MLflow is away: start it"))
    )

    code, out, err = trueline("votes", "a.csv", "--json")

    assert (code, err) == (2, "trueline: MLflow is away: start it\n")
    assert json.loads(out) == FIGURES | {"run_id": None}
    assert "MLflow" not in trueline("votes", "a.csv")[1]
