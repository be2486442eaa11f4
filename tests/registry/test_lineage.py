"""Runs are found by content, written anew where they are lost, and explain every version."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import stages
from tasks.registry.lineage import explain, sync
from tasks.registry.mlflow_runs import tracking
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import FIGURES, repro, run_again

TRACKED = ["sft", "reward", "held_out_reward", "align", "evaluate"]


@pytest.fixture
def params(tracked):
    return load_params()


def runs():
    store = open_store("trueline")
    return store.client.search_runs([store.experiment_id])


def statuses(synced):
    return [(each["stage"], each["status"]) for each in synced["stages"]]


def test_runs_that_are_lost_are_written_anew_once(tracked, params):
    first = sync.sync(params)
    assert statuses(first) == [(stage, "restored") for stage in TRACKED]
    assert sync.sync(params) == first
    assert len(runs()) == len(TRACKED)
    aligned = next(run for run in runs() if run.data.tags["stage"] == "ppo")
    assert aligned.info.status == "FINISHED"
    assert aligned.data.tags["key"] == stages.lock_key("align")
    assert json.loads(aligned.data.tags["outputs"]) == stages.output_hashes("align")
    assert aligned.data.params["ppo.clip"] == str(params.ppo.clip)
    store = open_store("trueline")
    curve = store.client.get_metric_history(aligned.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(0, 1.5), (1, 0.5)]
    assert aligned.data.metrics["final/loss"] == 0.5
    model = store.client.get_logged_model(aligned.data.tags["model_id"])
    assert model.tags["md5"] == stages.output_hash("align", Path("models/ppo"))


def test_what_is_written_anew_comes_from_the_lock_not_from_the_folder(tracked, params):
    Path("metrics/sft.json").write_text('{"loss": 99}')
    sync.sync(params)
    (found,) = [run for run in runs() if run.data.tags["stage"] == "sft"]
    assert found.data.metrics["final/loss"] == 0.5


def test_a_run_that_trained_is_found_and_completed(tracked, params):
    with tracking.run("sft", params) as run:
        run.log(0, {"loss": 2.0})
    synced = sync.sync(params)
    assert synced["stages"][0] == {"stage": "sft", "status": "ran", "run_id": run.id, "alarm": None}
    tags = open_store("trueline").client.get_run(run.id).data.tags
    assert json.loads(tags["outputs"]) == stages.output_hashes("sft")
    assert "model_id" in tags


def test_a_failed_run_is_no_lineage(tracked, params):
    with pytest.raises(ValueError, match="a bug"), tracking.run("sft", params):
        raise ValueError("a bug")
    assert statuses(sync.sync(params))[0] == ("sft", "restored")


@pytest.mark.slow
def test_a_run_used_by_a_later_result_is_reused(tracked, params):
    sync.sync(params)
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"\n  clip: .*", "\n  clip: 0.31", settings))
    repro()
    second = sync.sync(params)
    assert statuses(second) == [
        ("sft", "reused"),
        ("reward", "reused"),
        ("held_out_reward", "reused"),
        ("align", "restored"),
        ("evaluate", "restored"),
    ]
    assert sync.sync(params) == second
    Path("params.yaml").write_text(settings)
    repro()  # everything comes from DVC's cache
    assert statuses(sync.sync(params)) == [(stage, "restored") for stage in TRACKED]


@pytest.mark.slow
def test_other_bytes_under_the_same_key_are_an_alarm(tracked, params, caplog):
    with tracking.run("sft", params) as run:
        run.model(Path("models/sft"))
    lock = Path("dvc.lock").read_text()
    md5 = stages.output_hashes("sft")["models/sft"]
    Path("dvc.lock").write_text(lock.replace(md5, f"{'0' * 32}.dir"))
    synced = sync.sync(params)
    (alarm,) = synced["alarms"]
    assert alarm.startswith(f"sft is not deterministic: run {run.id} ")
    assert "models/sft" in alarm
    assert alarm in caplog.text
    assert sync.sync(params)["alarms"] == [alarm]
    Path("dvc.lock").write_text(lock)
    assert sync.sync(params)["alarms"] == []


def test_before_the_first_run_there_is_nothing_to_link(tracked, params):
    Path("dvc.lock").unlink()
    assert sync.sync(params) == {"stages": [], "alarms": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["champion", "1"])
def test_why_names_everything_that_made_a_version(tracked, params, name):
    champion.promote(params)
    explained = explain.why(params, name)
    assert (explained["version"], explained["aliases"], explained["method"]) == (1, ["champion"], "ppo")
    assert explained["policy"] == {
        "name": "trueline-policy",
        "path": "models/ppo",
        "md5": stages.output_hash("align", Path("models/ppo")),
    }
    assert explained["reward"] == {
        "name": "trueline-reward",
        "version": 1,
        "md5": stages.output_hash("reward", Path("models/reward")),
    }
    assert explained["base"]["md5"] == stages.output_hash("base", Path("models/base"))
    assert explained["data"]["md5"] == stages.output_hash("validate", Path("data/validate"))
    assert explained["data"]["prepare"] == FIGURES["prepare"]
    assert explained["data"]["validate"] == {"demonstrations": {"valid": 28, "quarantined": 2}}
    assert explained["gate"]["decision"] == "promote"
    assert explained["gate"]["checks"] == [{"name": "kl", "figure": 1.0}]
    assert explained["opponent"]["name"] == "sft"
    assert explained["champion_then"] is None
    assert len(explained["git_commit"]) == 40
    assert explained["git_dirty"] == "false"
    assert explained["params"]["ppo"]["clip"] == params.ppo.clip
    assert list(explained["runs"]) == TRACKED
    assert all(explained["runs"].values())
    assert [decision["action"] for decision in explained["decisions"]] == ["promote"]
    assert json.loads(json.dumps(explained)) == explained


@pytest.mark.slow
def test_why_still_knows_an_old_version_when_the_folder_has_moved_on(tracked, params):
    champion.promote(params)
    explained = explain.why(params, "champion")
    Path("figures.json").write_text(json.dumps({"content": 2}))
    repro()
    assert explain.why(params, "1") == explained


@pytest.mark.slow
def test_why_says_which_versions_and_aliases_there_are(tracked, params):
    with pytest.raises(InputError, match="trueline-policy has no champion: nothing has been registered yet"):
        explain.why(params, "champion")
    champion.register(params)
    for unknown in ("champion", "7", "no such"):
        with pytest.raises(InputError, match=rf"has no {unknown}: choose one .* 1 or of the aliases challenger \(1\)"):
            explain.why(params, unknown)


@pytest.mark.slow
def test_a_new_database_gets_runs_versions_and_aliases_back(challenged, empty_database, monkeypatch):
    params = load_params()
    assert champion.register(params)["version"] == 2  # never decided on: its number must not be given to another
    run_again(content=3)
    assert champion.promote(params)["version"] == 3
    run_again(content=4, gate={"decision": "reject", "reasons": ["Too long."]})
    assert champion.promote(params)["version"] == 4
    explained = explain.why(params, "champion")
    assert (explained["version"], explained["champion_then"]["version"]) == (3, 1)

    shutil.copy(empty_database, "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{challenged / 'new.db'}")
    assert statuses(sync.sync(params)) == [(stage, "restored") for stage in TRACKED]
    again = explain.why(params, "champion")
    moved = ("runs", "card", "reward_card")
    assert {name: again[name] for name in again if name not in moved} == {
        name: explained[name] for name in explained if name not in moved
    }
    assert all(Path(again[card]).is_file() for card in ("card", "reward_card"))
    assert explain.why(params, "previous")["version"] == 1
    assert explain.why(params, "4")["gate"]["reasons"] == ["Too long."]
    assert [decision["policy"]["version"] for decision in explain.history(params)] == [1, 3, 4]
