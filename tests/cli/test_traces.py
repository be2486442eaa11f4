"""What `trace` and `exclude` print."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import returning


def traced(**answers: Any) -> dict[str, Any]:
    no = {"reward_version": 1, "promoted": False, "policy": False, "reward": False, "stages": [], "rows": {}}
    return {"version": 1, "quarantined": 0, "unattributed": None, **no, **answers}


def test_a_trace_for_people_and_machines(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"prompts": {"train": 1}}
    found = {
        "what": "row", "name": "a1", "in_any": True,
        "versions": [
            traced(policy=True, stages=["ppo"], rows=rows, quarantined=2),
            traced(version=2, promoted=True, policy=None, reward=None, rows=None, quarantined=None),
        ],
    }  # fmt: skip
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))

    assert json.loads(trueline("trace", "--row", "a1", "--json")[1]) == found | {"excluded": None}
    _, first, second, why = trueline("trace", "--row", "a1")[1].splitlines()
    words = "1 yes 1: no ppo prompts train 1, quarantine 2"
    assert " ".join(first.split()) == words
    assert " ".join(second.split()) == "2 (was champion) unknown 1: unknown unknown"
    assert why.startswith("unknown: DVC's cache lacks the data of that version: run dvc fetch")


def test_a_trace_of_an_annotator_says_what_names_nobody(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"preferences": {"validation": 4}}
    found = {
        "what": "annotator", "name": "ann", "in_any": True,
        "versions": [
            traced(policy=None, reward=None, unattributed=36),
            traced(version=2, stages=["held_out_reward"], rows=rows, unattributed=0),
        ],
    }  # fmt: skip
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))

    assert json.loads(trueline("trace", "--annotator", "ann", "--json")[1]) == found | {"excluded": None}
    _, first, second, *why = trueline("trace", "--annotator", "ann")[1].splitlines()
    assert " ".join(first.split()) == "1 unknown 1: unknown no annotator 36"
    assert " ".join(second.split()) == "2 no 1: no held_out_reward preferences validation 4"
    assert " ".join(why).startswith("no annotator: rows that were learned from but name nobody")


def test_a_trace_that_finds_nothing_doubts_the_name(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"what": "source", "name": "p.json", "in_any": False, "versions": [traced()]}
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))

    assert "No data that could be read hold the source p.json" in trueline("trace", "--source", "p.json")[1]


def test_an_exclusion_says_what_runs_again(trueline, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    found = {"what": "row", "name": "a1", "in_any": True, "versions": [traced()]}
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))
    monkeypatch.setattr("tasks.registry.lineage.trace.stages_after", returning(["prepare", "validate"]))

    out = trueline("trace", "--row", "a1", "--exclude")[1]

    assert out.endswith("exclude.txt names it now. Nothing has run yet:\ntrueline run goes through prepare, validate\n")
    assert (checkout / "exclude.txt").read_text() == "row a1\n"
    assert json.loads(trueline("trace", "--row", "a1", "--exclude", "--json")[1])["excluded"]["added"] is False
    trueline("trace", "--annotator", "a1", "--exclude")
    assert (checkout / "exclude.txt").read_text() == "row a1\nannotator a1\n"


@pytest.mark.parametrize(
    "options", [[], ["--row", "a", "--source", "b"], ["--row", "a", "--annotator", "b"], ["--annotator", ""]]
)
def test_a_trace_starts_from_one_thing(trueline, options: list[str]) -> None:
    sentence = "trueline: a trace starts from one thing: give --row ID, --source NAME or --annotator NAME\n"
    assert trueline("trace", *options) == (2, "", sentence)
