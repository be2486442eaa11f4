"""Changing the champion: only through the gate, or back; every decision is recorded before anything moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from tasks.common.errors import InputError
from tasks.common.files import METRICS
from tasks.data.names import shown_name
from tasks.registry.mlflow_runs.lookup import link_runs, trained_account
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.candidate import compared_with, locked_json
from tasks.registry.promotion.decisions import (
    MOVES,
    Action,
    Decision,
    Holder,
    Review,
    decide,
    decisions_on,
    finish,
    one_at_a_time,
    past_decisions,
    place,
    unfinished,
)
from tasks.registry.promotion.server_lock import Turn, take_turn
from tasks.registry.promotion.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    as_holder,
    carry_out,
    check_weights,
    ensure_versions,
    find,
    holder,
    settle,
)
from tasks.settings.params import Params


class Registered(TypedDict):
    """The versions of a candidate."""

    policy: str
    version: int
    reward: str
    reward_version: int
    gate: str  # promote, reject or inconclusive


@dataclass
class Session:
    """The registry, in step with the record, for as long as it is ours alone."""

    store: Store
    turn: Turn
    pending: Decision | None  # what an earlier command recorded, and did not come to its end with
    is_answered: bool = False  # whoever asked will be told of the last decision

    def asked_before(self, action: Action, md5: str | None = None) -> Decision | None:
        """Give the pending decision where it is the one that is asked for, on a version where one is named."""
        pending = self.pending
        is_it = pending and pending["action"] == action and md5 in (None, pending["policy"]["md5"])
        return pending if is_it else None


class Verdict(TypedDict):
    """What came of a wish to promote."""

    promoted: bool
    held: bool  # it awaits approval
    version: int
    champion: int | None  # the version that is champion now
    reasons: list[str]


def register(params: Params) -> Registered:
    """Make the candidate in dvc.lock a version of the policy, and its reward model one of the reward model.

    The same content gives the same versions again. The policy becomes `challenger` unless it is champion already.

    Raises:
        InputError: the pipeline has not run to its end, its results do not belong together, or MLflow is away.
    """
    with _session(params) as session:
        return _describe(params, _register(session.store, params))


def promote(params: Params) -> Verdict:
    """Make the candidate in dvc.lock champion, if the gate says so; with registry.approval, hold it for a person.

    Returns:
        What came of it. It is refused, with reasons, where the gate did not say promote, where the candidate is
        champion already, where it was champion and has been taken back (only `rollback` puts it back), or where a
        person has rejected it.

    Raises:
        InputError: the gate compared with another opponent than today's champion, the pipeline's results do not
            belong together, the record is behind the registry, or MLflow is away.
    """
    with _session(params) as session:
        store = session.store
        champion, candidate = holder(store, params, CHAMPION), _register(store, params)
        if champion and champion["version"] == candidate["version"]:
            if before := session.asked_before("promote", candidate["md5"]):
                return _finished(session, before, champion)
            return _verdict(candidate, champion, [f"Version {candidate['version']} is the champion already."])
        gate = locked_json("gate", METRICS / "gate.json")
        refusal = _refusal(gate, candidate)
        session.turn.check()
        if refusal:
            _decide_once("refuse", candidate, champion, refusal, gate)
            return _verdict(candidate, champion, refusal)
        _check_opponent(candidate, champion, compared_with())
        if params.registry.approval:
            _decide_once("hold", candidate, champion, gate["reasons"], gate)
            return _verdict(candidate, champion, gate["reasons"], held=True)
        check_weights(store, params, candidate)
        session.turn.check()  # again: to hash takes time
        return _move(session, params, decide("promote", candidate, champion, gate["reasons"], gate))


def approve(params: Params, version_or_alias: str, by: str, reason: str) -> Verdict:
    """Make a version that awaits approval champion, on a person's word.

    Args:
        params: all settings.
        version_or_alias: such as 3 or challenger.
        by: who approves.
        reason: why.

    Raises:
        InputError: there is no such version or it does not await approval, name or reason is missing, the champion
            is no longer the one that the gate compared with, the record is behind the registry, or MLflow is away.
    """
    review = _review(by, reason)
    with _session(params) as session:
        policy, champion = _found(session, params, version_or_alias), holder(session.store, params, CHAMPION)
        if before := session.asked_before("promote", policy["md5"]):
            return _finished(session, before, champion)
        held = _held(policy)
        policy, gate = held["policy"], held["gate"]
        _check_opponent(policy, champion, policy["account"]["opponent"])
        check_weights(session.store, params, policy)
        policy["account"]["approval"] = review
        session.turn.check()
        return _move(session, params, decide("promote", policy, champion, [review["reason"]], gate, review=review))


def reject(params: Params, version_or_alias: str, by: str, reason: str) -> Verdict:
    """Refuse a version that awaits approval, on a person's word: no later run promotes it or offers it again.

    Args:
        params: all settings.
        version_or_alias: such as 3 or challenger.
        by: who rejects.
        reason: why.

    Raises:
        InputError: there is no such version or it does not await approval, name or reason is missing, the record is
            behind the registry, or MLflow is away.
    """
    review = _review(by, reason)
    with _session(params) as session:
        policy, champion = _found(session, params, version_or_alias), holder(session.store, params, CHAMPION)
        before = session.asked_before("refuse", policy["md5"])
        if before and before["review"]:
            return _finished(session, before, champion)
        held = _held(policy)
        session.turn.check()
        decide("refuse", held["policy"], champion, [review["reason"]], held["gate"], review=review)
        session.is_answered = True
        return _verdict(held["policy"], champion, [f"Rejected by {review['by']}: {review['reason']}"])


def rollback(params: Params, reason: str) -> Verdict:
    """Make the previous champion champion again, and the champion the previous one.

    Raises:
        InputError: no reason is given, there is no previous champion, the record is behind the registry, or MLflow
            is away.
    """
    reason = _text(reason)
    if not reason:
        raise InputError("a rollback needs a reason that others can read later: give one with --reason")
    with _session(params) as session:
        champion, previous = (holder(session.store, params, alias) for alias in (CHAMPION, PREVIOUS))
        if before := session.asked_before("rollback"):  # to go back now would be to go back to what was wrong
            return _finished(session, before, champion)
        if champion is None or previous is None:
            raise InputError("there is no previous champion to go back to: nothing has been promoted twice yet")
        check_weights(session.store, params, previous)
        gate = previous["account"]["gate"]
        session.turn.check()
        return _move(session, params, decide("rollback", previous, champion, [reason], gate))


def awaiting(champion: Holder | None) -> list[int]:
    """List the versions that await approval: those that were compared with today's champion.

    Raises:
        InputError: a row of the record is damaged.
    """
    newest = {decision["policy"]["version"]: decision for decision in past_decisions()}
    today = champion and place(champion)
    return sorted(version for version, last in newest.items() if last["action"] == "hold" and last["previous"] == today)


@contextmanager
def _session(params: Params) -> Iterator[Session]:
    """Open the registry for one process at a time, in step with every decision on record."""
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        with take_turn(store, params.registry.policy) as turn:
            before = unfinished()
            session = Session(store, turn, settle(store, params, turn) or before)
            yield session
        if session.is_answered:
            finish()


def _move(session: Session, params: Params, decision: Decision) -> Verdict:
    """Have the registry follow a recorded change of champion."""
    carry_out(session.store, params, decision, session.turn)
    session.is_answered = True
    return _verdict(decision["policy"], decision["policy"], decision["reasons"], promoted=True)


def _finished(session: Session, decision: Decision, champion: Holder | None) -> Verdict:
    """Say that what is asked for had been decided before, by a command that did not come to its end."""
    session.is_answered = True
    is_move = decision["action"] in MOVES
    told = f"This was decided on {decision['time']} by a command that did not come to its end, and is finished now."
    again = ["To swap the two again, roll back once more."] if decision["action"] == "rollback" else []
    return _verdict(decision["policy"], champion, [*decision["reasons"], told, *again], promoted=is_move)


def _decide_once(
    action: Action, candidate: Holder, champion: Holder | None, reasons: list[str], gate: dict[str, Any]
) -> None:
    """Record what moves nothing, unless it is what was last decided on the candidate, on the same grounds."""
    said = decisions_on(candidate["md5"])
    grounds = (action, champion and place(champion), gate)
    if not said or (said[-1]["action"], said[-1]["previous"], said[-1]["gate"]) != grounds:
        decide(action, candidate, champion, reasons, gate)


def _register(store: Store, params: Params) -> Holder:
    link_runs(store)
    known, champion = trained_account(store, params), holder(store, params, CHAMPION)
    known["champion_then"] = champion and {"version": champion["version"], "md5": champion["md5"]}
    candidate = ensure_versions(store, params, known)
    if champion is None or champion["version"] != candidate["version"]:
        names = params.registry
        store.client.set_registered_model_alias(names.reward, CHALLENGER, str(candidate["reward_version"]))
        store.client.set_registered_model_alias(names.policy, CHALLENGER, str(candidate["version"]))
    return candidate


def _refusal(gate: dict[str, Any], candidate: Holder) -> list[str]:
    if gate.get("decision") != "promote":
        return [f"The gate says {gate.get('decision', 'nothing')}.", *gate.get("reasons", [])]
    decisions = past_decisions()
    last_move = next((decision for decision in reversed(decisions) if decision["action"] in MOVES), None)
    for decision in reversed(decisions):
        is_own, previous, said = decision["policy"]["md5"] == candidate["md5"], decision["previous"], decision["review"]
        if is_own and decision["action"] in MOVES:
            return []
        told = f"on {decision['time']}: {' '.join(decision['reasons'])}"
        if is_own and said:
            return [f"Version {candidate['version']} was rejected by {said['by']} {told}"]
        if decision["action"] == "rollback" and previous and previous["md5"] == candidate["md5"]:
            cure = ["To put it back, roll back once more."] if decision is last_move else []
            return [f"Version {candidate['version']} was taken back by {decision['who']} {told}", *cure]
    return []


def _found(session: Session, params: Params, version_or_alias: str) -> Holder:
    return as_holder(find(session.store, params, version_or_alias))


def _held(policy: Holder) -> Decision:
    """Find the decision to hold a version; whoever rejected it since may think otherwise."""
    said = [
        decision for decision in decisions_on(policy["md5"]) if decision["action"] in MOVES or not decision["review"]
    ]
    if not said or said[-1]["action"] != "hold":
        last = f"{said[-1]['action']} ({' '.join(said[-1]['reasons'])})" if said else "none"
        raise InputError(
            f"version {policy['version']} does not await approval, the last decision on it is {last}: "
            "trueline history lists them all"
        )
    return said[-1]


def _review(by: str, reason: str) -> Review:
    by, reason = shown_name(_text(by)), _text(reason)
    if not by or not reason:
        raise InputError("whoever approves or rejects must be known later, and why: give --by and --reason")
    return Review(by=by, reason=reason)


def _text(said: str) -> str:
    """Give what a person typed, as the record can hold it.

    Raises:
        InputError: the terminal sent bytes that are not UTF-8.
    """
    try:
        said.encode()
    except UnicodeEncodeError:
        raise InputError(f"{said!a} is not UTF-8, as the record must be: type it again") from None
    return said.strip()


def _check_opponent(candidate: Holder, champion: Holder | None, opponent: dict[str, Any]) -> None:
    today = (champion["version"], champion["md5"]) if champion else (None, None)
    if (opponent["version"], opponent["policy"]) != today:
        name = f"champion version {opponent['version']}" if opponent["version"] else "SFT"
        now = f"version {champion['version']}" if champion else "none"
        raise InputError(
            f"the gate compared version {candidate['version']} with {name}, but the champion is {now} by now: "
            "run trueline run"
        )


def _describe(params: Params, candidate: Holder) -> Registered:
    return Registered(
        policy=params.registry.policy,
        version=candidate["version"],
        reward=params.registry.reward,
        reward_version=candidate["reward_version"],
        gate=candidate["account"]["gate"].get("decision", "unknown"),
    )


def _verdict(
    candidate: Holder, champion: Holder | None, reasons: list[str], *, promoted: bool = False, held: bool = False
) -> Verdict:
    number = champion["version"] if champion else None
    return Verdict(promoted=promoted, held=held, version=candidate["version"], champion=number, reasons=reasons)
