"""What a user must fix is one sentence and exit code 2."""

import os
import sys
from pathlib import Path

import pytest

from flows import cli
from flows.processes.locks import one_flow_at_a_time
from tasks.common.errors import InputError
from tasks.registry.lineage import explain, sync
from tasks.registry.promotion import champion
from tests.cli.conftest import raising


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("base.source", "base.source is nowhere, which does not exist: trueline configure base.source=PATH fixes it"),
        ("prepare.prompts.source", "prepare.prompts.source is nowhere, which does not exist"),
    ],
)
def test_run_with_an_absent_source(trueline, key: str, cure: str) -> None:
    assert trueline("configure", f"{key}=nowhere")[0] == 0

    code, out, err = trueline("run")

    assert (code, out) == (2, "")
    assert err.startswith("trueline: params.yaml: ")
    assert cure in err
    assert err.count("\n") == 1


def test_run_with_bad_settings(trueline, checkout: Path) -> None:
    (checkout / "params.yaml").write_text("seed: 7\n")

    code, _, err = trueline("run")

    assert code == 2
    assert err.startswith("trueline: params.yaml: dpo is missing: add it")


def test_run_with_nothing_to_fetch_from(trueline) -> None:
    assert trueline("run", "--pull", "--json") == (
        2,
        "",
        "trueline: DVC has no default remote to fetch from: name one (dvc remote add -d NAME ADDRESS)\n",
    )


def test_run_while_another_runs(trueline) -> None:
    with one_flow_at_a_time():
        code, out, err = trueline("run", "--json")

    assert (code, out) == (2, "")
    assert f"a flow runs in this checkout already: process {os.getpid()} on " in err


@pytest.mark.parametrize("command", [["why", "champion"], ["sync"], ["promote"], ["rollback", "--reason", "worse"]])
def test_an_input_error_is_one_sentence(trueline, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    for module, name in ((explain, "why"), (sync, "sync"), (champion, "promote"), (champion, "rollback")):
        monkeypatch.setattr(module, name, raising(InputError("MLflow is away: start it")))

    assert trueline(*command, "--json") == (2, "", "trueline: MLflow is away: start it\n")


def test_no_permission_is_one_sentence(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "history", raising(PermissionError(13, "denied", "decisions.jsonl")))

    code, _, err = trueline("history")

    assert (code, err) == (2, "trueline: no permission for decisions.jsonl: grant it or run as its owner\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "history", raising(KeyError("a bug")))
    monkeypatch.setattr(sys, "argv", ["trueline", "history"])

    with pytest.raises(KeyError):
        cli.main()


def test_rollback_needs_a_reason(trueline) -> None:
    code, _, err = trueline("rollback")

    assert code == 2
    assert "--reason" in err
