"""One lock at the registry at a time, of all checkouts that share a server: the other learns who has it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import apply_decisions, champion, server_lock, versions
from tasks.settings.params import load_params
from tests.registry.conftest import aliases

TURNS = "trueline-policy-turns"
# Rolls back for every reason on a line of stdin; tells what came of it.
ROLL_BACK = """
import json, sys
import mlflow
from tasks.common.errors import InputError
from tasks.settings.params import load_params
from tasks.registry.promotion import champion, server_lock
server_lock.POLL_SECONDS = 0.05
print("ready", flush=True)
for reason in sys.stdin:
    try:
        answers = champion.rollback(load_params(), reason)["champion"]
    except InputError as error:
        answers = str(error)
    print(json.dumps(answers), flush=True)
"""


def tickets():
    return open_store("trueline").client.search_model_versions(f"name = '{TURNS}'")


def taken_elsewhere(store):
    """A ticket of another checkout."""
    server_lock.ensure_model(store, TURNS)
    tags = {"checkout": "another", "who": "ada (process 1 on a machine)"}
    return store.client.create_model_version(TURNS, server_lock.NO_SOURCE, tags=tags)


def test_a_turn_leaves_no_ticket(tracked):
    store = open_store("trueline")
    with server_lock.lock_server(store, "trueline-policy") as lock:
        assert [ticket.version for ticket in tickets()] == [lock.ticket.version]
        lock.check()
    assert tickets() == []


def test_who_comes_second_learns_who_has_the_turn(tracked, monkeypatch):
    monkeypatch.setattr(server_lock, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(server_lock, "POLL_SECONDS", 0.01)
    taken_elsewhere(open_store("trueline"))
    with pytest.raises(InputError, match=r"ada \(process 1 on a machine\) has been changing the registry since 2"):
        champion.promote(load_params())
    assert not Path("decisions.jsonl").exists()
    assert len(tickets()) == 1  # the other's


def test_a_ticket_that_nobody_renews_expires_by_the_servers_clock(tracked, monkeypatch):
    monkeypatch.setattr(server_lock, "EXPIRY_SECONDS", 0.2)
    monkeypatch.setattr(server_lock, "POLL_SECONDS", 0.05)
    taken_elsewhere(open_store("trueline"))
    assert champion.promote(load_params())["promoted"]
    assert tickets() == []


def test_what_a_kill_left_of_this_checkouts_own_turn_holds_nobody_up(tracked, monkeypatch):
    monkeypatch.setattr(server_lock, "WAIT_SECONDS", 0.0)
    store = open_store("trueline")
    server_lock.ensure_model(store, TURNS)
    store.client.create_model_version(TURNS, server_lock.NO_SOURCE, tags={"checkout": server_lock._checkout()})
    assert champion.promote(load_params())["promoted"]
    assert tickets() == []


def test_a_copy_of_a_checkout_is_another_one(tracked, tmp_path, monkeypatch):
    name = server_lock._checkout()
    assert server_lock._checkout() == name
    shutil.copytree(tracked, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert server_lock._checkout() != name


def test_a_turn_is_renewed_while_it_lasts(tracked, monkeypatch):
    monkeypatch.setattr(server_lock, "RENEWAL_SECONDS", 0.05)
    with server_lock.lock_server(open_store("trueline"), "trueline-policy"):
        (before,) = tickets()
        deadline = time.monotonic() + 30
        while tickets()[0].last_updated_timestamp == before.last_updated_timestamp:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("fate", ["taken for dead", "was suspended"])
def test_who_has_lost_the_turn_moves_no_alias(challenged, monkeypatch, fate):
    def furnished(store, *_, **__):
        if fate == "taken for dead":
            server_lock._delete(store, *tickets())
        else:
            monkeypatch.setattr(server_lock, "SUSPENDED_SECONDS", -1.0)

    params = load_params()
    champion.register(params)
    before = aliases()
    with monkeypatch.context() as patch:
        patch.setattr(apply_decisions, "write_models", furnished)
        second = versions.read_policy_version(versions.find(open_store("trueline"), params, "2"))
        patch.setattr(champion, "_register", lambda *_: second)
        with pytest.raises(InputError, match="this command was suspended for so long"):
            champion.promote(params)
    assert aliases() == before
    monkeypatch.setattr(server_lock, "SUSPENDED_SECONDS", 60.0)
    assert champion.promote(params)["champion"] == 2  # the record says so, and nobody has decided otherwise


@pytest.mark.slow
def test_a_line_that_another_checkout_overtook_is_to_be_taken_out(challenged, monkeypatch):
    """This one is killed after its line, the other decides; which of the two lines counts is known by their order."""
    params = load_params()
    champion.promote(params)
    before = Path("decisions.jsonl").read_bytes()
    champion.rollback(params, "made elsewhere")
    elsewhere = json.loads(Path("decisions.jsonl").read_bytes().splitlines()[-1])
    Path("decisions.jsonl").write_bytes(before)
    lacking = (
        rf"lacks decision {elsewhere['id']}, .*\(version 1: rollback {elsewhere['time'][:10]}.* by [^:]*\): pull it"
    )
    with pytest.raises(InputError, match=lacking):
        champion.promote(params)
    ours = elsewhere | {"id": "ours"}
    Path("decisions.jsonl").write_bytes(before + json.dumps(ours).encode() + b"\n")
    with pytest.raises(InputError, match=rf"{elsewhere['id']}.* decision ours does not count: run trueline merge"):
        champion.promote(params)
    both = [json.dumps(each).encode() + b"\n" for each in (elsewhere, ours)]
    Path("decisions.jsonl").write_bytes(before + both[0] + both[1])
    with pytest.raises(
        InputError, match=rf"has decision ours \(rollback .* after {elsewhere['id']}, .* run trueline merge, which"
    ):
        champion.promote(params)
    Path("decisions.jsonl").write_bytes(before + both[1] + both[0])  # superseded, as it stands
    assert aliases()["trueline-policy"]["champion"] == 1
    assert champion.rollback(params, "in earnest")["champion"] == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_two_checkouts_that_roll_back_at_once_one_does_twenty_times(challenged, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{challenged / 'mlflow.db'}")
    champion.promote(load_params())
    clones = [challenged, Path(shutil.copytree(challenged, tmp_path / "clone"))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ROLL_BACK], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for folder in clones
    ]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n"
        leader = 2
        for number in range(20):
            for process in processes:
                print(f"reason {number}", file=process.stdin, flush=True)
            answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
            leader = 3 - leader
            winner = answers.index(leader)
            (sentence,) = [each for each in answers if isinstance(each, str)]
            records = [(folder / "decisions.jsonl").read_bytes() for folder in clones]
            decided = json.loads(records[winner].splitlines()[-1])
            assert decided["reasons"] == [f"reason {number}"]
            assert f"lacks decision {decided['id']}, " in sentence
            assert f"(version {leader}: rollback" in sentence
            assert [content.count(b"\n") - number for content in records] == [3 - winner, 2 + winner]
            assert aliases()["trueline-policy"] == {"champion": leader, "previous": 3 - leader}
            (clones[1 - winner] / "decisions.jsonl").write_bytes(records[winner])  # as git pull does
    finally:
        for process in processes:
            assert process.stdin
            process.communicate(timeout=60)
