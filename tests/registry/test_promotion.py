"""The registry changes only through the gate or back, and the record is always ahead of it."""

import json
from pathlib import Path

import pytest
import yaml

from flows.chat import version_folder
from flows.display.results import next_commands
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import stages
from tasks.registry.lineage.explain import history, why
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import apply_decisions, champion
from tasks.registry.promotion.decisions import past_decisions
from tasks.registry.promotion.opponent import refresh_opponent
from tasks.settings.params import parse_params
from tests.registry.conftest import ROOT, aliases, change_figures, repro, run_again

DECISION_LOG = Path("decisions.jsonl")


@pytest.fixture
def params():
    return parse_params(yaml.safe_load((ROOT / "params.yaml").read_text()))


@pytest.fixture
def promoted(tracked, params):
    """Version 1 is champion."""
    assert champion.promote(params)["promoted"]
    return tracked


@pytest.fixture
def promoted_twice(challenged, params):
    """Version 2 is champion, version 1 the previous one."""
    assert champion.promote(params)["promoted"]
    return challenged


@pytest.mark.slow
def test_registering_twice_gives_the_same_versions(tracked, params):
    first = champion.register(params)
    assert champion.register(params) == first
    assert (first["version"], first["reward_version"], first["gate"]) == (1, 1, "promote")
    assert aliases() == {"trueline-policy": {"challenger": 1}, "trueline-reward": {"challenger": 1}}
    version = open_store("trueline").client.get_model_version("trueline-policy", "1")
    assert version.tags["md5"] == stages.output_hash("align", Path("models/ppo"))
    assert version.tags["reward_md5"] == stages.output_hash("reward", Path("models/reward"))
    assert not DECISION_LOG.exists()


@pytest.mark.slow
def test_a_promotion_moves_the_aliases_and_is_recorded(promoted, params):
    (decision,) = past_decisions()
    assert (decision["action"], decision["policy"]["version"], decision["previous"]) == ("promote", 1, None)
    assert decision["reasons"] == ["All is well."]
    assert decision["gate"]["checks"] == [{"name": "kl", "figure": 1.0}]
    assert decision["time"].endswith("+00:00")
    assert decision["who"]
    assert decision["git_commit"]
    assert aliases() == {"trueline-policy": {"champion": 1}, "trueline-reward": {"champion": 1}}
    version = open_store("trueline").client.get_model_version("trueline-policy", "1")
    assert version.tags["decision"] == decision["id"]
    assert "All is well." in str(version.description)


@pytest.mark.slow
def test_after_a_promotion_nothing_runs(promoted, params):
    before = Path("dvc.lock").read_bytes()
    assert not refresh_opponent(params)
    assert repro() == []
    assert Path("dvc.lock").read_bytes() == before


@pytest.mark.slow
def test_the_champion_is_not_promoted_again(promoted, params):
    verdict = champion.promote(params)
    assert verdict == {
        "promoted": False, "held": False, "version": 1, "champion": 1, "reasons": ["Version 1 is the champion already."]
    }  # fmt: skip
    assert len(past_decisions()) == 1


@pytest.mark.slow
def test_what_a_run_advises_without_a_champion_works(tracked, params):
    run_again(gate={"decision": "reject", "reasons": ["Too long."]}, evaluate={"other": 1})
    advised = next_commands(champion.promote(params))
    assert advised == ["trueline why 1", "trueline chat --version 1", "trueline history"]
    assert version_folder("1", params).is_dir()
    assert why(params, "1")["version"] == len(history(params)) == 1
    with pytest.raises(InputError, match=r"has no champion: choose one of the versions 1 or of the aliases challenger"):
        version_folder("champion", params)  # which trueline chat alone would ask for


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["reject", "inconclusive"])
def test_without_the_gate_nothing_is_promoted(tracked, params, monkeypatch, decision):
    gate = {"decision": decision, "reasons": ["Too long."]}
    monkeypatch.setattr(champion, "locked_json", lambda *_: gate)
    verdict = champion.promote(params)
    reasons = [f"The gate says {decision}.", "Too long."]
    assert verdict == {"promoted": False, "held": False, "version": 1, "champion": None, "reasons": reasons}
    assert aliases()["trueline-policy"] == {"challenger": 1}
    champion.promote(params)  # the same candidate on the same grounds: nothing new to record
    (recorded,) = history(params)
    assert (recorded["action"], recorded["policy"]["version"], recorded["previous"]) == ("refuse", 1, None)
    assert (recorded["reasons"], recorded["gate"], recorded["review"]) == (reasons, gate, None)


@pytest.mark.slow
def test_a_gate_file_written_by_hand_changes_nothing(tracked, params):
    run_again(gate={"decision": "reject", "reasons": ["Too long."]}, evaluate={"other": 1})
    Path("metrics/gate.json").write_text(json.dumps({"decision": "promote", "reasons": []}))
    assert champion.promote(params)["reasons"] == ["The gate says reject.", "Too long."]


@pytest.mark.slow
def test_the_next_champion_makes_the_old_one_previous(promoted_twice, params):
    assert json.loads(Path("opponent.json").read_text()) == {
        "name": "champion",
        "version": 1,
        "policy": past_decisions()[0]["policy"]["md5"],
    }
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1}
    previous = past_decisions()[1]["previous"]
    assert previous and previous["version"] == 1


@pytest.mark.slow
def test_a_gate_that_compared_with_another_opponent_is_stale(promoted, params):
    change_figures(content=2)
    repro()  # without looking whom to compare with
    with pytest.raises(
        InputError, match="compared version 2 with SFT, but the champion is now version 1: run trueline run"
    ):
        champion.promote(params)
    assert len(past_decisions()) == 1


def test_an_opponent_changed_after_the_gate_is_stale(tracked, params):
    Path("opponent.json").write_text('{"name": "champion", "version": 9, "policy": "x.dir"}')
    with pytest.raises(InputError, match=r"opponent\.json has changed since the gate compared with it"):
        champion.promote(params)


@pytest.mark.slow
def test_a_gate_of_another_candidate_is_refused(tracked, params):
    change_figures(content=2)
    repro("align", single_item=True)
    with pytest.raises(InputError, match=r"ran on another models/ppo than the one in dvc\.lock: run dvc repro"):
        champion.promote(params)


def test_a_pipeline_that_has_not_ended_is_refused(tracked, params):
    Path("dvc.lock").unlink()
    with pytest.raises(InputError, match=r"dvc\.lock has no stage \w+: run dvc repro"):
        champion.register(params)


@pytest.mark.slow
def test_a_rollback_swaps_and_another_swaps_back(promoted_twice, params):
    assert champion.rollback(params, "it insults people") == {
        "promoted": True, "held": False, "version": 1, "champion": 1, "reasons": ["it insults people"]
    }  # fmt: skip
    assert aliases()["trueline-policy"] == {"champion": 1, "previous": 2}
    champion.rollback(params, "it was another model")
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1}
    assert [(each["action"], each["policy"]["version"]) for each in history(params)] == [
        ("promote", 1),
        ("promote", 2),
        ("rollback", 1),
        ("rollback", 2),
    ]


@pytest.mark.slow
def test_what_was_taken_back_is_not_promoted_by_the_next_run(promoted_twice, params):
    champion.rollback(params, "it insults people")
    run_again()
    verdict = champion.promote(params)
    assert (verdict["promoted"], verdict["champion"]) == (False, 1)
    assert "it insults people" in verdict["reasons"][0]


@pytest.mark.slow
def test_a_rollback_needs_a_reason_and_a_previous_champion(promoted, params):
    with pytest.raises(InputError, match="needs a reason"):
        champion.rollback(params, "  ")
    with pytest.raises(InputError, match="no previous champion"):
        champion.rollback(params, "it insults people")


@pytest.mark.slow
def test_a_record_behind_the_registry_is_refused(promoted_twice, params):
    DECISION_LOG.write_text(DECISION_LOG.read_text().splitlines(keepends=True)[0])
    for change in (lambda: champion.promote(params), lambda: champion.rollback(params, "why not")):
        with pytest.raises(
            InputError,
            match=r"^decisions\.jsonl lacks decision \w+, which the registry has carried out "
            r"\(version 2: promote \S+ by \S+\): pull it from where it was made \(trueline merge\), or restore",
        ):
            change()


@pytest.mark.slow
def test_a_damaged_record_is_named_with_its_row(promoted, params):
    with DECISION_LOG.open("a") as file:
        file.write('{"id": "cut o\n')
    with pytest.raises(InputError, match=r"decisions\.jsonl row 2 is damaged: restore the file from git"):
        history(params)


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b'{"id": "cut o', '{"id": "ü'.encode()[:-1], b"{"])
def test_a_line_that_a_kill_cut_off_decided_nothing_and_goes_with_the_next(torn, promoted_twice, params, caplog):
    whole = DECISION_LOG.read_bytes()
    DECISION_LOG.write_bytes(whole + torn)
    assert len(history(params)) == 2
    assert "decisions.jsonl row 3 is incomplete: it decided nothing" in caplog.text
    champion.rollback(params, "it insults people")
    assert DECISION_LOG.read_bytes().startswith(whole + b'{"id": ')
    assert [row["action"] for row in map(json.loads, DECISION_LOG.read_text().splitlines())][2:] == ["rollback"]


@pytest.mark.slow
def test_a_whole_line_that_lost_its_end_still_counts(promoted_twice, params):
    whole = DECISION_LOG.read_bytes()
    DECISION_LOG.write_bytes(whole.removesuffix(b"\n"))
    assert len(history(params)) == 2
    champion.rollback(params, "it insults people")
    assert DECISION_LOG.read_bytes().startswith(whole)
    assert len(history(params)) == 3


def test_a_version_of_somebody_else_is_no_champion_of_ours(tracked, params):
    client = open_store("trueline").client
    client.create_registered_model("trueline-policy")
    client.create_model_version("trueline-policy", "dvc:other")
    client.set_registered_model_alias("trueline-policy", "champion", "1")
    with pytest.raises(InputError, match="version 1 was not registered by trueline"):
        champion.promote(params)


def test_the_opponent_is_sft_until_there_is_a_champion(tracked, params):
    assert not refresh_opponent(params)
    Path("opponent.json").unlink()
    assert refresh_opponent(params)
    assert json.loads(Path("opponent.json").read_text()) == {"name": "sft", "version": None, "policy": None}


@pytest.mark.slow
def test_the_opponent_is_the_champion_when_the_candidate_would_be_another(promoted, params):
    change_figures(content=2)
    assert refresh_opponent(params)
    assert json.loads(Path("opponent.json").read_text())["version"] == 1
    assert not refresh_opponent(params)


@pytest.mark.slow
def test_a_clone_without_files_has_no_other_candidate(promoted, params):
    Path("models/ppo/content.txt").unlink()
    Path("models/ppo").rmdir()
    assert not refresh_opponent(params)


@pytest.mark.slow
def test_a_lost_registry_comes_back_from_the_record(promoted_twice, params):
    store = open_store("trueline")
    for name in ("trueline-policy", "trueline-reward"):
        store.client.delete_registered_model(name)
    apply_decisions.apply_pending(store, params)
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1}


@pytest.mark.slow
def test_a_model_that_came_back_and_was_overtaken_may_be_promoted_again(promoted_twice, params):
    champion.rollback(params, "it insults people")
    champion.rollback(params, "it was another model")
    run_again(content=3)
    assert champion.promote(params)["champion"] == 3
    run_again(content=2)
    assert champion.promote(params)["champion"] == 2


@pytest.mark.slow
def test_a_record_of_changes_of_champion_alone_is_still_read(promoted, params):
    (decision,) = past_decisions()
    stored = json.loads(DECISION_LOG.read_text())
    old = {name: value for name, value in stored.items() if name not in ("policy", "review")}
    DECISION_LOG.write_text(json.dumps(old | {"champion": stored["policy"]}) + "\n")
    assert past_decisions() == [decision]
    assert champion.promote(params)["reasons"] == ["Version 1 is the champion already."]
