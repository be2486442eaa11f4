"""Reads figures and curves of earlier stages and opponent.json, writes metrics/gate.json and reports/gate/report.html.

A pure function of files: nothing is promoted here, and a rejection is a result, not an error.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.files import (
    CURVES,
    METRICS,
    REPORTS,
    damaged_row,
    read_json,
    read_jsonl,
    replacing,
    write_csv,
    write_json,
)
from tasks.evaluation.gate.checks import Evidence, decide, lookup, reasons, run_checks, warnings
from tasks.evaluation.gate.plots import FRONTIER_COLUMNS, Reliability, frontier_points, reliability_points
from tasks.evaluation.gate.report import Background, Judgement, render
from tasks.evaluation.opponent import OPPONENT_FILE, Opponent, read_opponent
from tasks.settings.params import Params
from tasks.stage import main

EVALUATION = METRICS / "evaluate.json"
RESPONSES = REPORTS / "evaluate" / "responses.jsonl"
REPORT = REPORTS / "gate" / "report.html"
RELIABILITY, FRONTIER = REPORT.with_name("reliability.csv"), REPORT.with_name("frontier.csv")  # for dvc plots


def gate(params: Params) -> None:
    """Decide whether the candidate may be promoted, and write the reasons.

    Raises:
        InputError: a file is missing or damaged, or the evaluation was made against another opponent.
    """
    evaluation, opponent = read_json(EVALUATION), read_opponent()
    _check_opponent(evaluation, opponent)
    reward = read_json(METRICS / "reward.json")
    curves = {stage: _read_curve(CURVES / f"{stage}.csv") for stage in ("sft", "reward", params.align.method)}
    background = Background(reward, read_json(METRICS / "validate.json"), curves)
    checks = run_checks(
        Evidence(evaluation, reward, read_json(METRICS / "held_out_reward.json"), opponent), params.gate
    )
    judgement = Judgement(decide(checks), reasons(checks), warnings(evaluation, params.gate), checks, opponent)
    page = render(judgement, evaluation, _read_responses(RESPONSES), background)
    with replacing(REPORT) as draft:
        draft.write_text(page, encoding="utf-8")
    write_csv(RELIABILITY, Reliability._fields, (point._asdict() for point in reliability_points(reward)))
    write_csv(FRONTIER, FRONTIER_COLUMNS, frontier_points(evaluation.get("frontier") or []))
    write_json(METRICS / "gate.json", _as_json(judgement))


def _check_opponent(evaluation: Mapping[str, Any], opponent: Opponent) -> None:
    compared = tuple(lookup(evaluation, "opponent", key) for key in ("name", "version"))
    if compared != (opponent.name, opponent.version):
        raise InputError(f"{EVALUATION} does not compare with {opponent}, whom {OPPONENT_FILE} names: run dvc repro")


def _read_curve(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        raise InputError(f"{path} does not exist: run the stage that writes it (dvc repro)")
    with path.open(encoding="utf-8", newline="") as file:
        try:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        except (TypeError, ValueError):
            rows = []
    if not rows:
        raise InputError(f"{path} is damaged: delete it and run dvc repro")
    return rows


def _read_responses(path: Path) -> list[dict[str, Any]]:
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        if not _is_whole(row):
            raise damaged_row(path, number)
    return rows


def _is_whole(row: object) -> bool:
    if not isinstance(row, Mapping) or not isinstance(row.get("references"), list):
        return False
    turns = row.get("prompt")
    if not isinstance(turns, list) or not all(isinstance(lookup(turn, "content"), str) for turn in turns):
        return False
    return all(isinstance(lookup(row, model, "answer"), str) for model in ("candidate", "opponent"))


def _as_json(judgement: Judgement) -> dict[str, Any]:
    return {
        "decision": judgement.decision,
        "opponent": judgement.opponent._asdict(),
        "checks": [check._asdict() for check in judgement.checks],
        "reasons": judgement.reasons,
        "warnings": judgement.warnings,
    }


if __name__ == "__main__":
    main(gate)
