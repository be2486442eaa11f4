"""With registry.approval, the gate opens the way and a person takes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.lineage import explain
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import past_decisions
from tasks.registry.promotion.versions import find, read_policy_version
from tasks.settings.params import load_params
from tests.registry.conftest import aliases, change_params, run_again
from tests.registry.test_races import at_once


@pytest.fixture
def params(challenged):
    """Version 1 is champion, and version 2 awaits approval."""
    change_params(registry={"approval": True})
    params = load_params()
    verdict = champion.promote(params)
    assert verdict == {"promoted": False, "held": True, "version": 2, "champion": 1, "reasons": ["All is well."]}
    return params


def actions():
    return [(decision["action"], decision["policy"]["version"]) for decision in past_decisions()]


@pytest.mark.slow
def test_what_awaits_approval_is_recorded_once_and_moves_nothing(params):
    assert champion.promote(params)["held"]
    assert actions() == [("promote", 1), ("hold", 2)]
    assert aliases()["trueline-policy"] == {"champion": 1, "challenger": 2}
    assert champion.awaiting(params, read_policy_version(find(open_store("trueline"), params, "champion"))) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "challenger"])
def test_an_approval_promotes_and_is_shown_everywhere(params, name):
    verdict = champion.approve(params, name, " A\u200bda\u202e ", "I read fifty answers.")
    assert verdict == {
        "promoted": True, "held": False, "version": 2, "champion": 2, "reasons": ["I read fifty answers."]
    }  # fmt: skip
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1}
    review = {"by": "Ada", "reason": "I read fifty answers."}
    assert [decision["review"] for decision in explain.history(params)] == [None, None, review]
    explained = explain.why(params, "champion")
    assert explained["approval"] == review
    assert [decision["action"] for decision in explained["decisions"]] == ["hold", "promote"]
    version = find(open_store("trueline"), params, "champion")
    assert "approved by Ada: I read fifty answers." in str(version.description)
    assert "Approved by Ada: I read fifty answers." in Path(explained["card"].removeprefix("file://")).read_text()
    assert champion.awaiting(params, read_policy_version(version)) == []


@pytest.mark.slow
def test_an_approval_asks_nothing_of_the_working_folder(params):
    """A person may take days, and the next run has begun."""
    Path("dvc.lock").unlink()
    assert champion.approve(params, "2", "Ada", "Good.")["champion"] == 2


@pytest.mark.slow
def test_an_approval_of_what_was_compared_with_another_champion_is_stale(params):
    run_again(content=3)
    assert champion.promote(params)["version"] == 3
    champion.approve(params, "3", "Ada", "Good.")
    sentence = "compared version 2 with champion version 1, but the champion is now version 3: run trueline run"
    with pytest.raises(InputError, match=sentence):
        champion.approve(params, "2", "Ada", "Good too.")
    assert actions()[-1] == ("promote", 3)
    assert champion.awaiting(params, read_policy_version(find(open_store("trueline"), params, "champion"))) == []


@pytest.mark.slow
def test_two_approvals_at_once_give_one_champion_and_one_sentence(params):
    run_again(content=3)
    assert champion.promote(params)["version"] == 3
    results = at_once(*(f"champion.approve(load_params(), '{version}', 'Ada', 'Good.')" for version in (2, 3)))
    (sentence,) = [each for each in results if isinstance(each, str)]
    (verdict,) = [each for each in results if isinstance(each, dict)]
    assert verdict["promoted"]
    assert f"but the champion is now version {verdict['version']}" in sentence
    assert aliases()["trueline-policy"]["champion"] == verdict["version"]
    assert actions()[-1] == ("promote", verdict["version"])


@pytest.mark.slow
def test_what_a_person_rejected_is_not_offered_again_but_may_be_thought_over(params):
    verdict = champion.reject(params, "2", "Ada", "It flatters.")
    assert (verdict["promoted"], verdict["champion"]) == (False, 1)
    assert verdict["reasons"] == ["Rejected by Ada: It flatters."]
    again = champion.promote(params)
    assert not again["held"]
    assert again["reasons"][0].startswith("Version 2 was rejected by Ada on 20")
    assert "It flatters." in again["reasons"][0]
    change_params(registry={"approval": False})
    assert not champion.promote(load_params())["promoted"]  # the word stands
    assert actions() == [("promote", 1), ("hold", 2), ("refuse", 2)]
    assert champion.approve(params, "2", "Ada", "I was wrong.")["champion"] == 2


@pytest.mark.parametrize("act", [champion.approve, champion.reject])
def test_only_what_awaits_approval_can_be_approved_or_rejected(params, act):
    with pytest.raises(
        InputError, match=r"version 1 does not await approval, the last decision on it is promote \(All"
    ):
        act(params, "1", "Ada", "Why not?")
    with pytest.raises(InputError, match="trueline-policy has no 9"):
        act(params, "9", "Ada", "Why not?")
    for by, reason in (("", "Good."), ("\u200b\u202e", "Good."), ("Ada", " ")):
        with pytest.raises(InputError, match="give --by and --reason"):
            act(params, "2", by, reason)
    assert actions() == [("promote", 1), ("hold", 2)]


@pytest.mark.slow
def test_a_gate_that_refuses_cannot_be_overruled(params):
    run_again(content=3, gate={"decision": "inconclusive", "reasons": ["Too few prompts."]})
    assert champion.promote(params)["reasons"] == ["The gate says inconclusive.", "Too few prompts."]
    with pytest.raises(InputError, match=r"version 3 does not await approval, the last decision on it is refuse"):
        champion.approve(params, "3", "Ada", "I like it.")


# Asks as a scheduled run does, twice, and fills in the form on the server.
FORM = """
import json, subprocess, sys, time
from flows.prefect_server.temporary_server import local_server

SERVE = "import sys; from flows.deployment.deploy import schedule; schedule('0 3 1 1 *', 'UTC', sys.argv[1])"

def eventually(look):
    deadline = time.monotonic() + 150
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain: {look.__name__}, {[run.state for run in runs()]}"
        time.sleep(0.2)
    return found

with local_server() as url, subprocess.Popen([sys.executable, "-c", SERVE, url], stdout=sys.stderr) as serving:
    from prefect.client.orchestration import get_client
    from flows.pipeline.approval import ask
    from flows.prefect_server.deployments import ASKED

    with get_client(sync_client=True) as client:
        def deployed():
            return [each for each in client.read_deployments() if each.name == ASKED]
        def runs():
            return client.read_flow_runs()
        def suspended():
            return [run for run in runs() if run.state.is_paused()]
        def filled_in():  # refused until the suspended run has saved the form's schema
            answer = {"answer": "approve", "by": "Ada", "reason": "Good."}
            return client.resume_flow_run(run.id, run_input=answer).status.value == "ACCEPT"
        def ended():
            return all(run.state.is_final() for run in runs())
        try:
            eventually(deployed)
            for _ in range(2):
                ask({"version": 2, "champion": 1})
            (run,) = eventually(suspended)
            eventually(filled_in)
            eventually(ended)
            print(json.dumps([[run.name, run.state.name] for run in runs()]))
        finally:
            serving.terminate()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_form_on_a_prefect_server_approves(params):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    served = {"PREFECT__RUNTIME__DEPLOYMENT__ID": "an id", "PREFECT__RUNTIME__DEPLOYMENT__NAME": "scheduled"}
    env = clean | served  # as in a run of the served pipeline
    done = subprocess.run([sys.executable, "-c", FORM], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["approve version 2", "Completed"]]
    assert aliases()["trueline-policy"] == {"champion": 2, "previous": 1}
    assert past_decisions()[-1]["review"] == {"by": "Ada", "reason": "Good."}
