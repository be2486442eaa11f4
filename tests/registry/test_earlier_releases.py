"""What an earlier release wrote is still read: decisions, versions, model cards and weights (earlier_release/)."""

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from tasks.common.files import read_jsonl
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.export.folders import export, export_reward
from tasks.registry.lineage import explain, sync, trace
from tasks.registry.lineage.report import MARKER, write_report
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import mark_reported, past_decisions, unreported_decision
from tasks.settings.params import load_params
from tests.registry.conftest import FIGURES, aliases, run_again, shell, write_pipeline

ARCHIVE = Path(__file__).with_name("earlier_release") / "checkout.tar.xz"
DECISIONS = [
    ("promote", 1, None),
    ("hold", 2, None),
    ("promote", 2, "Ada"),
    ("rollback", 1, None),
    ("hold", 3, None),
    ("refuse", 3, "Ada"),
    ("refuse", 3, None),
]


def load_rows(content, database):
    """Add rows by table and column name: today's MLflow may have more columns."""
    with sqlite3.connect(database) as connection:
        for table, rows in json.loads(content).items():
            connection.execute(f"DELETE FROM {table}")
            for row in rows:
                columns, places = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", list(row.values()))
    connection.close()


@pytest.fixture
def params(empty_database, tmp_path, monkeypatch):
    """The earlier release's checkout as the working folder, with today's pipeline; gives the settings."""
    folder = tmp_path / "checkout"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    rows = folder / "mlflow.json"
    shutil.copy(empty_database, folder)
    load_rows(rows.read_text().replace("CHECKOUT", str(folder)), folder / "mlflow.db")
    rows.unlink()
    opponent = (folder / "opponent.json").read_bytes()
    write_pipeline(folder)
    (folder / "opponent.json").write_bytes(opponent)
    (folder / "figures.json").write_text(json.dumps(FIGURES))
    shell("git", "init", "-q", cwd=folder)
    monkeypatch.chdir(folder)
    return load_params()


def test_every_decision_is_listed(params):
    found = explain.history(params)
    given = [(each["action"], each["policy"]["version"], each["review"] and each["review"]["by"]) for each in found]
    assert given == DECISIONS
    assert aliases() == {"trueline-policy": {"champion": 1, "previous": 2, "challenger": 3}, "trueline-reward": {
        "champion": 1, "previous": 1, "challenger": 1}}  # fmt: skip
    assert champion.awaiting(params, None) == []


@pytest.mark.parametrize("name", ["champion", "previous", "3"])
def test_a_version_explains_itself_in_the_words_of_today(params, name):
    known = explain.why(params, name)
    assert set(known["runs"]) == {"sft", "reward", "held_out_reward", "align", "evaluate"}
    assert None not in known["runs"].values()
    assert {"held_out", "ground_truth"} < set(known["figures"]["evaluate"])
    assert not {"judge", "gold", "trial"} & {*known["figures"]["evaluate"], *known["keys"], *known["params"]}
    assert Path(known["card"]).is_file()
    assert Path(known["reward_card"]).is_file()


@pytest.mark.slow
def test_a_row_is_traced_to_every_version(params, tmp_path):
    materialise(explain.why(params, "1")["data"]["md5"], tmp_path / "data")
    rows = list(read_jsonl(tmp_path / "data/preferences.jsonl"))
    learned, held_out = (next(row["id"] for row in rows if row["split"] == split) for split in ("train", "validation"))
    found = trace.trace(params, "row", learned)["versions"]
    assert [(each["version"], each["promoted"], each["policy"]) for each in found] == [
        (1, True, True),
        (2, True, True),
        (3, False, True),
    ]
    assert trace.trace(params, "row", held_out)["versions"][0]["stages"] == ["held_out_reward"]


def test_models_are_exported_with_cards_that_have_every_figure(params, tmp_path):
    policy, reward = export(params, "champion", tmp_path / "policy"), export_reward(params, "3", tmp_path / "reward")
    assert policy["version"] == 1
    for exported in (policy, reward):
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(exported["files"])
    evaluation = explain.why(params, "1")["figures"]["evaluate"]
    rows = [line for line in (tmp_path / "policy/README.md").read_text().splitlines() if line.startswith("| Win rate")]
    for figure in ("held_out", "ground_truth"):
        found = evaluation["ground_truth"]["order_rule"] if figure == "ground_truth" else evaluation[figure]
        name = {"held_out": "held-out", "ground_truth": r"order\_rule"}[figure]
        assert f"{found['vs_sft']['value']:.3f}" in next(row for row in rows if name in row)
    best_of = [line for line in (tmp_path / "reward/README.md").read_text().splitlines() if line.startswith("| 8 |")]
    assert best_of
    assert "—" not in best_of[0]
    assert "not recorded" not in best_of[0]


def test_a_rollback_brings_an_earlier_release_s_version_back(params):
    verdict = champion.rollback(params, "it insulted nobody after all")
    assert (verdict["promoted"], verdict["champion"]) == (True, 2)
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1, "challenger": 3}


def test_a_decision_whose_command_was_killed_is_still_reported(params):
    last = [decision for decision in past_decisions() if decision["review"] or decision["action"] == "promote"][-1]
    Path(".trueline").mkdir(exist_ok=True)
    Path(".trueline/deciding").write_text(last["id"])
    assert unreported_decision("trueline-policy") == last
    mark_reported()
    assert unreported_decision("trueline-policy") is None


@pytest.mark.slow
def test_a_candidate_of_today_beats_a_champion_of_an_earlier_release(params):
    Path("given/gate").mkdir(parents=True)
    Path("given/gate/report.html").write_text(f"<p>{MARKER}</p>")
    run_again(content=2)
    assert json.loads(Path("opponent.json").read_text())["version"] == 1
    assert champion.promote(params)["champion"] == 4
    assert aliases()["trueline-policy"] == {"champion": 4, "previous": 1}
    page = Path(write_report(params)["path"]).read_text()
    assert "champion version 1" in page


@pytest.mark.slow
def test_the_registry_comes_back_from_an_earlier_release_s_decisions(params, empty_database):
    shutil.copy(empty_database, "mlflow.db")
    shutil.rmtree("mlruns")
    sync.sync(params)
    assert aliases()["trueline-policy"] == {"champion": 1, "previous": 2}
    assert Path(explain.why(params, "champion")["card"]).is_file()
