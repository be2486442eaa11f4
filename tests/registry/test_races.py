"""Promotions that are killed halfway or made at once: one champion, nothing lost, and the next run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.common.errors import InputError
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import apply_decisions, champion, decisions
from tasks.registry.promotion.decisions import past_decisions
from tasks.registry.promotion.versions import CHAMPION, find_by_alias
from tasks.settings.params import load_params
from tests.registry.conftest import aliases

DECISION_LOG = Path("decisions.jsonl")
# Every write of a promotion in the order in which they happen, as the client's method, what it is given, and who is
# champion where the process dies just before it. `decide` is the line in the record.
STEPS = [
    ("create_model_version", "trueline-reward", 1),
    ("create_model_version", "trueline-policy", 1),
    ("log_model_artifact", "", 1),
    ("set_registered_model_alias", "trueline-reward challenger", 1),
    ("set_registered_model_alias", "trueline-policy challenger", 1),
    ("decide", "", 1),
    ("update_model_version", "trueline-policy 2", 1),
    ("set_model_version_tag", "trueline-policy 2 model_record", 1),
    ("set_model_version_tag", "trueline-policy 2 decision", 1),
    ("set_registered_model_alias", "trueline-reward previous", 1),
    ("set_registered_model_alias", "trueline-policy previous", 1),
    ("delete_registered_model_alias", "trueline-reward challenger", 1),
    ("delete_registered_model_alias", "trueline-policy challenger", 1),
    ("set_registered_model_alias", "trueline-reward champion", 1),
    ("set_registered_model_alias", "trueline-policy champion", 1),
    ("set_registered_model_tag", "trueline-policy decision", 2),
]
PROMOTE = """
import json, sys
import mlflow
from tasks.common.errors import InputError
from tasks.settings.params import load_params
from tasks.registry.promotion import champion
print("ready", flush=True)
sys.stdin.readline()
try:
    print(json.dumps(eval(sys.argv[1])))
except InputError as error:
    print(json.dumps(str(error)))
"""


class Killed(BaseException):
    """The process is gone: nothing of the program may catch it."""


def watch(patch, before):
    """Have `before` called with each write's name and arguments."""

    def watched(name):
        write = getattr(MlflowClient, name)

        def written(client, *arguments, **options):
            if arguments[0] != "trueline-policy-turns":  # see test_server_lock.py
                before(name, " ".join(map(str, arguments)))
            return write(client, *arguments, **options)

        return written

    for name in {step for step, _, _ in STEPS} - {"decide"}:
        patch.setattr(MlflowClient, name, watched(name))

    def decide(*arguments, **options):
        before("decide", "")
        return decisions.decide(*arguments, **options)

    patch.setattr(champion, "decide", decide)


def serving():
    found = find_by_alias(open_store("trueline"), load_params(), CHAMPION)
    return found and found["version"]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "given", "expected"), STEPS, ids=[" ".join(step[:2]) for step in STEPS])
def test_a_promotion_killed_before_any_step_is_finished_by_the_next_run(challenged, monkeypatch, step, given, expected):
    def die(name, arguments):
        if name == step and arguments.startswith(given):
            raise Killed

    with monkeypatch.context() as patch:
        watch(patch, die)
        with pytest.raises(Killed):
            champion.promote(load_params())
    assert serving() == expected

    champion.promote(load_params())  # or whatever else settles; what it says is in test_interrupted.py
    assert aliases() == {name: {"champion": 2, "previous": 1} for name in ("trueline-policy", "trueline-reward")}
    assert [(each["action"], each["policy"]["version"]) for each in past_decisions()] == [
        ("promote", 1),
        ("promote", 2),
    ]


def test_the_steps_are_all_there_are(challenged, monkeypatch):
    """The line in the record comes first, the champion's alias last; a new step must join the list above."""
    seen = []
    with monkeypatch.context() as patch:
        watch(patch, lambda name, arguments: seen.append((name, arguments)))
        champion.promote(load_params())
    known = [(step, given) for step, given, _ in STEPS]
    left = iter(seen)
    assert all(any(name == step and argument.startswith(given) for name, argument in left) for step, given in known)
    others = {
        name for name, argument in seen if not any(name == step and argument.startswith(given) for step, given in known)
    }
    assert others == {"set_model_version_tag"}  # between `model_record` and `decision`
    assert {name for name, _ in seen} == {step for step, _, _ in STEPS}


def at_once(*calls):
    """Make calls in processes of their own that start together; give what each returned, or its sentence."""
    processes = [
        subprocess.Popen([sys.executable, "-c", PROMOTE, call], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for call in calls
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in processes]


@pytest.mark.slow
def test_two_promotions_at_once_give_one_champion_and_one_refusal(challenged):
    argument = at_once("champion.promote(load_params())", "champion.promote(load_params())")
    assert sorted(verdict["promoted"] for verdict in argument) == [False, True]
    refused = next(verdict for verdict in argument if not verdict["promoted"])
    assert refused["reasons"] == ["Version 2 is the champion already."]
    assert [each["policy"]["version"] for each in past_decisions()] == [1, 2]
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1}


@pytest.mark.slow
def test_a_champion_that_another_checkout_made_meanwhile_stays(challenged, monkeypatch):
    def furnished(store, *_, **__):
        store.client.set_registered_model_alias("trueline-policy", "champion", "1")
        store.client.set_registered_model_tag("trueline-policy", "decision", "made elsewhere")

    before = DECISION_LOG.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(apply_decisions, "write_models", furnished)
        with pytest.raises(
            InputError, match=r"lacks decision made elsewhere, .* decision \w+ does not count: run trueline merge"
        ):
            champion.promote(load_params())
    assert serving() == 1
    with pytest.raises(InputError, match=r"lacks decision made elsewhere, which the registry has carried out: pull it"):
        champion.promote(load_params())
    assert serving() == 1
    assert len(DECISION_LOG.read_text().splitlines()) == len(before.splitlines()) + 1  # the line to take out
