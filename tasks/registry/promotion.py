"""Changing the champion: only through the gate, or back; every change is recorded before it is made."""

from typing import Any, TypedDict

from tasks.data.files import METRICS
from tasks.errors import InputError
from tasks.params import Params
from tasks.registry.candidate import account, compared_with, locked_json
from tasks.registry.decisions import Holder, decide, one_at_a_time, past_decisions
from tasks.registry.runs import find_run, link_runs
from tasks.registry.store import Store, open_store
from tasks.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, carry_out, ensure_versions, holder, settle


class Registered(TypedDict):
    """The versions of a candidate."""

    policy: str
    version: int
    reward: str
    reward_version: int
    gate: str  # promote, reject or inconclusive


class Verdict(TypedDict):
    """What came of a wish to promote."""

    promoted: bool
    version: int
    champion: int | None  # the version that is champion now
    reasons: list[str]


def register(params: Params) -> Registered:
    """Make the candidate in dvc.lock a version of the policy, and its reward model one of the reward model.

    The same content gives the same versions again. The policy becomes `challenger` unless it is champion already.

    Raises:
        InputError: the pipeline has not run to its end, its results do not belong together, or MLflow is away.
    """
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        settle(store, params)
        return _describe(params, _register(store, params))


def promote(params: Params) -> Verdict:
    """Make the candidate in dvc.lock champion, if the gate says so.

    Returns:
        What came of it. It is refused, with reasons, where the gate did not say promote, where the candidate is
        champion already, or where it was champion and has been taken back: only `rollback` puts it back.

    Raises:
        InputError: the gate compared with another opponent than today's champion, the pipeline's results do not
            belong together, the record is behind the registry, or MLflow is away.
    """
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        settle(store, params)
        champion, candidate = holder(store, params, CHAMPION), _register(store, params)
        gate = locked_json("gate", METRICS / "gate.json")
        refusal = _refusal(gate, champion, candidate)
        if refusal:
            return _verdict(False, candidate, champion, refusal)
        _check_opponent(champion)
        decision = decide("promote", candidate, champion, gate["reasons"], gate)
        carry_out(store, params, decision)
        return _verdict(True, candidate, candidate, gate["reasons"])


def rollback(params: Params, reason: str) -> Verdict:
    """Make the previous champion champion again, and the champion the previous one.

    Raises:
        InputError: no reason is given, there is no previous champion, the record is behind the registry, or MLflow
            is away.
    """
    if not reason.strip():
        raise InputError("a rollback needs a reason that others can read later: give one with --reason")
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        settle(store, params)
        champion, previous = holder(store, params, CHAMPION), holder(store, params, PREVIOUS)
        if champion is None or previous is None:
            raise InputError("there is no previous champion to go back to: nothing has been promoted twice yet")
        reasons = [reason.strip()]
        carry_out(store, params, decide("rollback", previous, champion, reasons, previous["account"]["gate"]))
        return _verdict(True, previous, previous, reasons)


def _register(store: Store, params: Params) -> Holder:
    link_runs(store)
    known, champion = account(params), holder(store, params, CHAMPION)
    run = find_run(store, known["keys"]["align"])
    trained_with = ("git_commit", "git_dirty", "lock_file", "seed", "device")
    known |= {name: value for name, value in (run.data.tags if run else {}).items() if name in trained_with}
    known["champion_then"] = champion and {"version": champion["version"], "md5": champion["md5"]}
    candidate = ensure_versions(store, params, known)
    if champion is None or champion["version"] != candidate["version"]:
        names = params.registry
        store.client.set_registered_model_alias(names.reward, CHALLENGER, str(candidate["reward_version"]))
        store.client.set_registered_model_alias(names.policy, CHALLENGER, str(candidate["version"]))
    return candidate


def _refusal(gate: dict[str, Any], champion: Holder | None, candidate: Holder) -> list[str]:
    if champion and champion["version"] == candidate["version"]:
        return [f"Version {candidate['version']} is the champion already."]
    if gate.get("decision") != "promote":
        return [f"The gate says {gate.get('decision', 'nothing')}.", *gate.get("reasons", [])]
    for decision in reversed(past_decisions()):
        previous = decision["previous"]
        if decision["action"] == "rollback" and previous and previous["md5"] == candidate["md5"]:
            return [
                f"Version {candidate['version']} was taken back by {decision['who']} on {decision['time']}: "
                f"{' '.join(decision['reasons'])}",
                "To put it back, roll back once more.",
            ]
    return []


def _check_opponent(champion: Holder | None) -> None:
    opponent = compared_with()
    today = (champion["version"], champion["md5"]) if champion else (None, None)
    if (opponent["version"], opponent["policy"]) != today:
        name = f"champion version {opponent['version']}" if opponent["version"] else "SFT"
        now = f"version {champion['version']}" if champion else "none"
        raise InputError(f"the gate compared with {name}, but the champion is {now} by now: run trueline run")


def _describe(params: Params, candidate: Holder) -> Registered:
    return Registered(
        policy=params.registry.policy,
        version=candidate["version"],
        reward=params.registry.reward,
        reward_version=candidate["reward_version"],
        gate=candidate["account"]["gate"].get("decision", "unknown"),
    )


def _verdict(promoted: bool, candidate: Holder, champion: Holder | None, reasons: list[str]) -> Verdict:
    number = champion["version"] if champion else None
    return Verdict(promoted=promoted, version=candidate["version"], champion=number, reasons=reasons)
