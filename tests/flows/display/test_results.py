"""What commands print: it acts on no terminal, and what it advises is there."""

import json
from typing import Any

import pytest
from rich.console import Console

from flows.commands.common import print_result
from flows.display import results as display
from flows.display.results import show_findings, show_history, show_promotion, show_result, show_tree
from tasks.common.escapes import visible


@pytest.mark.parametrize(
    ("outcome", "advised"),
    [
        ({"promoted": True, "champion": 3}, "trueline why champion · trueline chat · trueline history"),
        ({"champion": None}, "trueline why 3 · trueline chat --version 3 · trueline history"),  # refused, or in doubt
        ({"champion": 2}, "trueline why 3 · trueline chat · trueline history"),
        ({"held": True, "champion": 2}, "trueline why 3 · trueline chat --version 3 · trueline history"),
        ({"held": True, "champion": None}, "trueline why 3 · trueline chat --version 3 · trueline history"),
        ({"champion": 3}, "trueline why champion · trueline chat · trueline history"),  # it was before
    ],
)
def test_what_is_advised_after_a_run_is_what_there_is(capsys: pytest.CaptureFixture[str], outcome, advised) -> None:
    verdict = {"promoted": False, "held": False, "version": 3, "reasons": []} | outcome
    show_result({"stages": [], "promotion": verdict, "alarms": [], "places": {}})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"next       {advised}"
    assert printed[-2] == "MLflow     .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db"


NAME = "\x1b[2J\x9b1m\u202e[bold]:warning:\r\nchampion: 9"
SHOWN = "\\x1b[2J\\x9b1m\\u202e[bold]:warning:\\r\\nchampion: 9"


def said_by(name: str) -> list[tuple[Any, Any, int]]:
    """A command's data with a name in every place that data fill, what shows it, and how often it is shown."""
    decision = {"time": "t", "who": name, "action": "refuse", "policy": {"version": 3}, "review": None}
    verdict = {"promoted": False, "held": False, "version": 3, "champion": 2, "reasons": [name]}
    return [
        ([decision | {"reasons": [name]}], show_history, 2),
        ({"gate": {"reasons": [name], name: {name: name}}, "decisions": [{name: name}]}, show_tree, 6),
        (verdict, show_promotion, 1),
        ([{"check": name, "level": "ok", "found": name, "cure": name}], show_findings, 3),
    ]


@pytest.mark.parametrize(("content", "show", "times"), said_by(NAME), ids=["history", "why", "promote", "doctor"])
def test_what_data_say_acts_on_no_terminal(capsys, monkeypatch, content, show, times) -> None:
    monkeypatch.setattr(display, "_console", Console(highlight=False, width=400))
    print_result(content, False, show)
    out = capsys.readouterr().out
    assert (out.count(SHOWN), visible(out)) == (times, out)
    print_result(content, True, show)
    printed = capsys.readouterr().out
    assert visible(printed) == printed
    assert json.loads(printed) == content


def test_sentences_stand_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    show_tree({"files": ["a.jsonl", "b.jsonl"], "gate": {"reasons": ["KL 0.597: passed", "length 0.83: passed"]}})
    assert capsys.readouterr().out.splitlines() == [
        "policy",
        "├── files: a.jsonl, b.jsonl",
        "└── gate",
        "    └── reasons",
        "        ├── KL 0.597: passed",
        "        └── length 0.83: passed",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_is_shown_fits_the_terminal(capsys, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(display, "_console", Console(highlight=False, width=width))
    reason = "win rate over SFT 0.729 [0.695, 0.762], at least 0.5: passed"
    decision = {"time": "2026-11-22T03:00:00+00:00", "who": "ada", "action": "refuse", "policy": {"version": 3}}
    show_history([decision | {"review": None, "reasons": [reason, reason]}])
    show_findings([{"check": "packages", "level": "warn", "found": f"torch {reason}", "cure": "make install"}])
    show_tree({"gate": {"reasons": [reason, reason]}})

    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert set(reason.split()) <= set(out.split())
