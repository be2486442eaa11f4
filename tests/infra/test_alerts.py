"""The alert rules are over metrics that we export; what they say is tested by promtool (make check-alerts)."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flows.inspection.metrics import HELP, QUEUE_STATES
from flows.serving.metrics import Metrics
from flows.stages.last_run import OUTCOMES
from tests.conftest import ROOT

FOLDER = ROOT / "infra/alerts"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "trueline.rules.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def of_serving() -> set[str]:
    """Names of the samples that the server of models exports."""
    versions: Any = SimpleNamespace(
        alive=list, current=dict, failures=dict, aliases=["champion"], registry_answers=True
    )
    types = re.findall(r"^# TYPE (\w+) (\w+)$", Metrics(versions).exposition().decode(), flags=re.MULTILINE)
    return {f"{name}_bucket" if kind == "histogram" else name for name, kind in types}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_is_over_what_we_export(rule: dict[str, Any]) -> None:
    used = set(re.findall(r"\btrueline_\w+", rule["expr"]))

    assert used
    assert used <= {*HELP} | of_serving()
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}


def test_values_of_labels_exist() -> None:
    expressions = " ".join(rule["expr"] for rule in RULES)
    known: dict[str, set[str]] = {"outcome": {*OUTCOMES}, "state": {*QUEUE_STATES}}
    for label, values in known.items():
        [named] = re.findall(rf'{label}[!=]~"([^"]+)"', expressions)
        assert set(named.split("|")) < values


def test_every_rule_has_a_case() -> None:
    tests = yaml.safe_load((FOLDER / "trueline.tests.yaml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}

    assert fired == {rule["alert"] for rule in RULES}


def test_the_docs_name_every_alert() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")

    assert {*re.findall(r"`(Trueline\w+)`", page)} == {rule["alert"] for rule in RULES}
