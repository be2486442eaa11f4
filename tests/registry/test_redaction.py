"""Nothing that leaves names a machine: no path of one, no address, no host."""

import json
import platform
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tasks.registry.export.folders import export, export_reward
from tasks.registry.export.policy_card import policy_card
from tasks.registry.lineage import explain
from tasks.registry.lineage.redaction import machine_id, redact, redact_record
from tasks.registry.mlflow_runs import tracking
from tasks.registry.promotion import champion
from tasks.registry.promotion.candidate import model_record
from tasks.settings.params import load_params
from tests.registry.test_policy_card import RECORD


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("/home/ann/models/tiny", "tiny"),
        ("../elsewhere/pairs.jsonl", "pairs.jsonl"),
        ("infra/example/orders.py", "infra/example/orders.py"),
        ("http://gpu7.lab:8000/v1", "http://…/v1"),
        ("1/2", "1/2"),
        (["/a/b", 3, None], ["b", 3, None]),
        ({"/home/ann/hub.yaml": {"source": "/home/ann/hub.yaml"}}, {"hub.yaml": {"source": "hub.yaml"}}),
    ],
)
def test_a_place_is_shown_by_its_name(setting: Any, shown: Any) -> None:
    assert redact(setting) == shown
    assert redact(shown) == shown


def test_a_place_in_the_project_is_shown_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert redact(f"{tmp_path}/models/tiny") == "models/tiny"


def test_paths_in_a_record_of_an_earlier_release_are_redacted() -> None:
    source, prepare = "/home/ann/base", {"preferences": {"source": "/home/ann/pairs.jsonl"}}
    known = RECORD | {"base": {"source": source, "md5": "dd.dir"}, "params": {"prepare": prepare}}
    card = policy_card({"version": 4, "reward_version": 2, "md5": "aa.dir", "record": known})
    assert "/home" not in card
    assert "| base model | `dd.dir` | `base` |" in card
    assert redact_record(known)["params"] == {"prepare": {"preferences": {"source": "pairs.jsonl"}}}
    assert known["base"]["source"] == source  # what was recorded stays


def test_the_record_of_a_candidate_names_no_machine(tracked: Path) -> None:
    params = load_params()
    elsewhere = params.base.model_copy(update={"source": "/home/ann/models/tiny"})
    shown = model_record(params.model_copy(update={"base": elsewhere}))
    assert shown["base"]["source"] == "tiny"
    assert str(tracked) not in json.dumps(shown)


@pytest.mark.slow
def test_nothing_that_leaves_names_this_machine(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "the-name-of-this-machine")
    params = load_params()
    with tracking.run("sft", params):
        pass
    champion.promote(params)
    export(params, "champion", tmp_path / "policy", as_adapter=True)
    export_reward(params, "champion", tmp_path / "reward")
    names = [str(real).encode(), str(tmp_path).encode(), platform.node().encode()]
    artifacts = [path for path in (real / "mlruns").rglob("*") if path.is_file()]
    exported = [path for name in ("policy", "reward") for path in (tmp_path / name).rglob("*") if path.is_file()]
    outputs = [path for name in ("models", "metrics", "reports") for path in (real / name).rglob("*") if path.is_file()]
    assert len(artifacts) > 10
    for path in (*artifacts, *exported, *outputs):
        assert not any(name in path.read_bytes() for name in names), path
    with sqlite3.connect(real / "mlflow.db") as database:
        for table in ("tags", "params", "model_version_tags", "logged_model_tags", "input_tags", "datasets"):
            shown = str(database.execute(f"SELECT * FROM {table}").fetchall()).encode()
            assert not any(name in shown for name in names), table
    assert not any(name in json.dumps(explain.why(params, "champion")).encode() for name in names)
    assert machine_id() not in platform.node()
