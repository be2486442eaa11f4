"""Asking again for what a killed command had recorded finishes it and says so; nothing is done twice or undone."""

import sqlite3
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from flows.deployment.gpu_part import gpu_part
from flows.pipeline.flow import pipeline
from flows.prefect_server.abandoned_runs import end_runs_of_crashed_flow
from tasks.registry.dvc_outputs import stages
from tasks.registry.lineage import sync
from tasks.registry.mlflow_runs import linked_runs, tracking
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion, decisions
from tasks.registry.promotion.decisions import past_decisions
from tasks.settings.params import load_params
from tasks.stage import classify
from tests.registry.conftest import aliases, change_params
from tests.registry.test_races import Killed

WRITES = (
    "create_model_version",
    "update_model_version",
    "delete_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
)
FINISHED = "by a command that was killed before it finished; it is finished now."


def killing(patch, is_last):
    """Have the process die before the first write to MLflow for which `is_last` holds; all the others reach it."""

    def killed(name):
        write = getattr(MlflowClient, name)

        def written(client, *arguments, **options):
            if is_last(f"{name} {' '.join(map(str, arguments))}"):
                raise Killed
            return write(client, *arguments, **options)

        return written

    for name in WRITES:
        patch.setattr(MlflowClient, name, killed(name))


def kill(monkeypatch, command, is_last):
    with monkeypatch.context() as patch:
        killing(patch, is_last)
        with pytest.raises(Killed):
            command()


def writes(monkeypatch, command):
    seen: list[str] = []
    with monkeypatch.context() as patch:
        killing(patch, seen.append)  # which returns None: nobody dies
        command()
    return seen


def actions():
    return [(decision["action"], decision["policy"]["version"]) for decision in past_decisions()]


@pytest.mark.slow
def test_a_rollback_killed_after_its_line_and_asked_for_again_goes_back_once(challenged, monkeypatch):
    params = load_params()
    champion.promote(params)
    made = writes(monkeypatch, lambda: champion.rollback(params, "it insults people"))
    number, lines = 1, len(actions())
    # By now its version has all tags, so the next rollback makes the same writes on the other one.
    for at, write in enumerate(made):
        if not any(each in write for each in ("alias trueline-policy", "set_registered", "delete_model_version")):
            continue
        count = iter(range(len(made)))
        kill(monkeypatch, lambda: champion.rollback(params, "first"), lambda _, n=count, last=at: next(n) == last)
        verdict = champion.rollback(params, "asked again")
        number, lines = 3 - number, lines + 1
        assert (verdict["champion"], verdict["promoted"]) == (number, True)
        assert aliases()["trueline-policy"] == {"champion": number, "previous": 3 - number}
        assert len(actions()) == lines
        assert FINISHED in verdict["reasons"][1], write
    assert champion.rollback(params, "this time in earnest")["champion"] == 3 - number


@pytest.mark.slow
def test_a_sync_between_the_two_makes_no_difference(challenged, monkeypatch):
    params = load_params()
    champion.promote(params)
    kill(monkeypatch, lambda: champion.rollback(params, "it insults people"), lambda write: " champion " in write)
    sync.sync(params)
    assert aliases()["trueline-policy"]["champion"] == 1
    champion.promote(params)  # as a scheduled run does; it is refused
    verdict = champion.rollback(params, "it insults people")
    assert verdict["champion"] == 1
    assert FINISHED in verdict["reasons"][1]
    assert champion.rollback(params, "it was another model")["champion"] == 2


@pytest.mark.slow
def test_another_command_after_a_killed_one_does_what_it_is_asked(challenged, monkeypatch, caplog):
    params = load_params()
    kill(monkeypatch, lambda: champion.promote(params), lambda write: " champion " in write)
    assert champion.rollback(params, "it insults people")["champion"] == 1
    assert "promote of version 2" in caplog.text
    assert actions() == [("promote", 1), ("promote", 2), ("rollback", 1)]


@pytest.mark.slow
def test_a_promotion_asked_for_again_says_that_it_is_finished(challenged, monkeypatch):
    params = load_params()
    kill(monkeypatch, lambda: champion.promote(params), lambda write: " champion " in write)
    verdict = champion.promote(params)
    assert (verdict["promoted"], verdict["champion"]) == (True, 2)
    assert FINISHED in verdict["reasons"][-1]
    assert champion.promote(params)["reasons"] == ["Version 2 is the champion already."]


@pytest.mark.slow
@pytest.mark.parametrize("last", ["trueline-policy champion", "delete_model"])
def test_an_approval_asked_for_again_is_finished(challenged, monkeypatch, last):
    change_params(registry={"approval": True})
    params = load_params()
    champion.promote(params)

    def approve():
        return champion.approve(params, "2", "Ada", "Good.")

    kill(monkeypatch, approve, lambda write: last in write)
    verdict = approve()
    assert (verdict["promoted"], verdict["champion"], verdict["reasons"][0]) == (True, 2, "Good.")
    assert FINISHED in verdict["reasons"][1]
    assert actions() == [("promote", 1), ("hold", 2), ("promote", 2)]


@pytest.mark.slow
def test_what_moves_nothing_is_recorded_once(challenged, monkeypatch):
    change_params(registry={"approval": True})
    params = load_params()

    def reject():
        return champion.reject(params, "2", "Ada", "It flatters.")

    for command in (lambda: champion.promote(params), reject):  # a hold, then a person's refusal
        kill(monkeypatch, command, lambda write: write.startswith("delete_model_version"))
        before = actions()
        command()
        assert actions() == before
    assert actions() == [("promote", 1), ("hold", 2), ("refuse", 2)]
    assert champion.approve(params, "2", "Ada", "I was wrong.")["champion"] == 2


@pytest.mark.slow
def test_an_answer_that_was_lost_on_its_way_is_as_good_as_a_kill(challenged, monkeypatch):
    params = load_params()
    champion.promote(params)
    write = MlflowClient.set_registered_model_tag

    def lost(*arguments):
        write(*arguments)
        raise MlflowException("API request failed with exception read timed out")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_tag", lost)
        with pytest.raises(MlflowException) as seen:
            champion.rollback(params, "it insults people")
    kind, sentence = classify(seen.value)
    assert kind == "transient"
    assert "read timed out" in sentence
    assert champion.rollback(params, "it insults people")["champion"] == 1


@pytest.mark.slow
def test_a_full_disk_under_the_database_is_a_sentence(challenged, monkeypatch, caplog):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    def until_now(*arguments):
        # SQLite fails at the commit; MLflow makes its own error of it.
        patch.setattr("sqlalchemy.engine.default.DefaultDialect.do_commit", full)
        return decisions.decide(*arguments)

    params = load_params()
    with monkeypatch.context() as patch:
        patch.setattr(champion, "decide", until_now)
        with pytest.raises(MlflowException) as seen:
            champion.promote(params)
    assert classify(seen.value)[1].startswith(f"no space left on the disk of {challenged}")
    assert "Traceback" not in caplog.text
    assert champion.promote(params)["champion"] == 2


@pytest.mark.slow
def test_a_new_database_whose_making_was_killed_while_it_counted_is_made_to_its_end(challenged, monkeypatch):
    params = load_params()
    champion.promote(params)
    record = Path("decisions.jsonl")
    record.write_text(record.read_text().replace('"policy": {"version": 2,', '"policy": {"version": 4,'))
    client = open_store("trueline").client
    for name in ("trueline-policy", "trueline-reward"):
        client.delete_registered_model(name)
    kill(
        monkeypatch, lambda: champion.register(params), lambda write: write == "delete_model_version trueline-policy 2"
    )
    sync.sync(params)
    assert aliases()["trueline-policy"] == {"champion": 4, "previous": 1}


def finished_runs(key):
    store = open_store("trueline")
    return store.client.search_runs([store.experiment_id], f"tags.key = '{key}' and attributes.status = 'FINISHED'")


def running():
    store = open_store("trueline")
    return store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'")


def test_a_run_that_was_being_written_anew_is_ended_by_the_next_command(tracked, monkeypatch):
    with monkeypatch.context() as patch, suppress(Killed):

        def die(*_):
            raise Killed

        patch.setattr(linked_runs, "locked_json", die)
        sync.sync(load_params())
    assert [run.data.tags["stage"] for run in running()] == ["sft"]
    assert running()[0].data.tags["process"] == tracking.this_process()
    sync.sync(load_params())
    assert running() == []
    assert len(finished_runs(stages.lock_key("sft"))) == 1


def test_a_number_that_another_process_has_by_now_keeps_no_run_open(tracked):
    store, key = open_store("trueline"), str(stages.lock_key("sft"))
    left = tracking.start(store, "sft", key, {}, {"process": tracking.this_process()})
    store.client.create_run(store.experiment_id, start_time=1, tags={"key": key, "process": tracking.this_process()})
    tracking.end_abandoned(store)
    assert [run.info.run_id for run in running()] == [left.id]  # the other began in 1970, before this process


def test_a_run_of_another_machine_is_ended_once_its_flow_has(tracked, monkeypatch):
    store = open_store("trueline")
    for flow in ("crashed", "lives"):
        monkeypatch.setenv(tracking.FLOW_RUN, flow)
        monkeypatch.setattr(tracking, "this_process", lambda flow=flow: f"elsewhere:{flow}")
        tracking._begin(store, "sft", load_params(), None, "cpu")
    tracking.end_abandoned(store)
    assert {run.data.tags["flow_run"] for run in running()} == {"crashed", "lives"}
    tracking.end_abandoned(store, lambda flow: flow == "crashed")
    assert [run.data.tags["flow_run"] for run in running()] == ["lives"]


def test_a_runner_ends_the_mlflow_runs_of_a_flow_that_was_killed(tracked, monkeypatch):
    killed, other = uuid4(), uuid4()
    for flow_run in (killed, other):
        monkeypatch.setenv(tracking.FLOW_RUN, str(flow_run))
        monkeypatch.setattr(tracking, "this_process", lambda: "elsewhere:1")
        tracking._begin(open_store("trueline"), "sft", load_params(), None, "cpu")
    assert pipeline.on_crashed_hooks == [end_runs_of_crashed_flow]
    assert gpu_part.on_crashed_hooks == [end_runs_of_crashed_flow]
    for has_run_here, left in ((True, 2), (False, 1)):
        monkeypatch.setattr("flows.prefect_server.abandoned_runs.has_run_here", lambda here=has_run_here: here)
        end_runs_of_crashed_flow(
            flow=pipeline, flow_run=FlowRun(id=killed, flow_id=uuid4()), state=Crashed()
        )  # as Prefect calls it
        assert len(running()) == left
    assert running()[0].data.tags["flow_run"] == str(other)


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_of_two_finished_runs_of_one_machine_one_stays(tracked, monkeypatch, host):
    params, key = load_params(), stages.lock_key("sft")
    with tracking.run("sft", params) as first:
        first.model(Path("models/sft"))
    if host == "elsewhere":
        monkeypatch.setattr(tracking, "this_process", lambda: "elsewhere:1")
    with tracking.run("sft", params):  # DVC was killed before it had taken what the first one wrote
        pass
    assert len(finished_runs(key)) == 2
    linked = sync.sync(params)["stages"][0]
    assert linked["run_id"] == first.id
    assert len(finished_runs(key)) == (1 if host == "here" else 2)
    assert sync.sync(params)["stages"][0] == linked


def test_runs_that_contradict_one_another_both_stay(tracked):
    params, key = load_params(), stages.lock_key("sft")
    with tracking.run("sft", params) as first:
        first.model(Path("models/sft"), "f" * 32 + ".dir")
    with tracking.run("sft", params) as second:
        second.model(Path("models/sft"))
    assert sync.sync(params)["alarms"]
    assert len(finished_runs(key)) == 2
