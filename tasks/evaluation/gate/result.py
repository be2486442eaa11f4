"""The layout of metrics/gate.json."""

from typing import Literal

from tasks.common.files import METRICS
from tasks.common.record import Number, Record, Text

Verdict = Literal["passed", "failed", "inconclusive"]  # of a check
GateDecision = Literal["promote", "reject", "inconclusive"]
GATE = METRICS / "gate.json"


class CheckFigures(Record):
    """One check of the gate."""

    name: str
    figure: Number
    threshold: float
    verdict: Verdict
    sentence: Text


class OpponentName(Record):
    """Which model the candidate was compared with."""

    name: Literal["sft", "champion"]
    version: int | None
    policy: str | None


class GateResult(Record):
    """metrics/gate.json."""

    decision: GateDecision
    opponent: OpponentName
    checks: list[CheckFigures]
    reasons: list[Text]
    warnings: list[Text]
    left_out: list[str]  # checks that do not apply, and why
