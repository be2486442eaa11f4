"""Reads figures and curves of earlier stages and opponent.json, writes metrics/gate.json and reports/gate/report.html.

A pure function of files: nothing is promoted here, and a rejection is a result, not an error.
"""

import csv
import logging
from pathlib import Path

from tasks.common.errors import InputError
from tasks.common.files import CURVES, REPORTS, replacing, write_csv
from tasks.common.record import read_record, write_record
from tasks.data.checks.validation import VALIDATION, Validation
from tasks.evaluation.gate.check import Evidence
from tasks.evaluation.gate.checks import decide, left_out, reasons, run_checks, warnings
from tasks.evaluation.gate.plots import CURVE_COLUMNS, Reliability, curve_points, reliability_points
from tasks.evaluation.gate.report import Background, render
from tasks.evaluation.gate.result import GATE, CheckFigures, GateResult, OpponentName
from tasks.evaluation.opponent import OPPONENT_FILE, Opponent, read_opponent
from tasks.evaluation.reward_check_record import REWARD_CHECK, RewardCheck
from tasks.evaluation.reward_figures import HELD_OUT_REWARD, REWARD, read_reward_model
from tasks.evaluation.schema import EVALUATION, Evaluation, read_responses
from tasks.settings.params import Params
from tasks.stage import main

logger = logging.getLogger(__name__)

REPORT = REPORTS / "gate" / "report.html"
# For dvc plots:
RELIABILITY, CURVE = REPORT.with_name("reliability.csv"), REPORT.with_name("over_optimisation.csv")


def gate(params: Params) -> None:
    """Decide whether the candidate may be promoted, and write the reasons.

    Raises:
        InputError: a file is missing or damaged, or the evaluation was made against another opponent.
    """
    evaluation, opponent = read_record(EVALUATION, Evaluation), read_opponent()
    _check_opponent(evaluation, opponent)
    reward = read_reward_model(REWARD)
    trained = ["sft", *(["reward"] if reward and reward.steps else []), params.align.stage]
    curves = {stage: _read_curve(CURVES / f"{stage}.csv") for stage in trained}
    evidence = Evidence(evaluation, reward, read_reward_model(HELD_OUT_REWARD), opponent)
    checks = run_checks(evidence, params.gate)
    result = GateResult(
        decision=decide(checks),
        opponent=OpponentName(**opponent._asdict()),
        checks=[CheckFigures(**check._asdict()) for check in checks],
        reasons=reasons(checks),
        warnings=warnings(evidence, params.gate),
        left_out=left_out(evidence),
    )
    before = read_record(VALIDATION, Validation), curves, read_record(REWARD_CHECK, RewardCheck)
    page = render(result, opponent, evaluation, list(read_responses()), Background(reward, *before))
    with replacing(REPORT) as draft:
        draft.write_text(page, encoding="utf-8")
    points = reliability_points(reward) if reward else []
    write_csv(RELIABILITY, Reliability._fields, (point._asdict() for point in points))
    write_csv(CURVE, (*CURVE_COLUMNS, *evaluation.ground_truth), curve_points(evaluation.over_optimisation))
    write_record(GATE, result)
    for warning in result.warnings:  # a promoted candidate that games its reward must not pass in silence
        logger.warning("%s", warning)


def _check_opponent(evaluation: Evaluation, opponent: Opponent) -> None:
    if (evaluation.opponent.name, evaluation.opponent.version) != (opponent.name, opponent.version):
        raise InputError(f"{EVALUATION} does not compare with {opponent}, which {OPPONENT_FILE} names: run dvc repro")


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


if __name__ == "__main__":
    main(gate)
