"""Changing the champion: through the gate or by rollback. Every decision is logged before an alias moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from tasks.common.errors import InputError
from tasks.common.files import METRICS
from tasks.data.names import shown_name
from tasks.registry.mlflow_runs.linked_runs import link_runs, trained_record
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.apply_decisions import apply_decision, apply_pending
from tasks.registry.promotion.candidate import gate_opponent, locked_json
from tasks.registry.promotion.decisions import (
    MOVES,
    Action,
    Decision,
    PolicyVersion,
    Review,
    checkout_lock,
    decide,
    decisions_of,
    decisions_on,
    mark_reported,
    registered_model,
    unreported_decision,
    version_id,
)
from tasks.registry.promotion.mlflow_models import check_weights
from tasks.registry.promotion.registration import ensure_versions
from tasks.registry.promotion.server_lock import ServerLock, lock_server
from tasks.registry.promotion.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    find,
    find_by_alias,
    read_policy_version,
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
    """The registry while this process has locked it, with every logged decision applied."""

    store: Store
    lock: ServerLock
    pending: Decision | None  # logged by an earlier command that was killed before it finished
    is_reported: bool = False  # the caller gets the result of the last decision

    def repeated(self, action: Action, md5: str | None = None) -> Decision | None:
        """Return the pending decision if the command repeats it; `md5` names a version."""
        pending = self.pending
        is_same = pending and pending["action"] == action and md5 in (None, pending["policy"]["md5"])
        return pending if is_same else None


class Promotion(TypedDict):
    """The result of promote, approve, reject or rollback."""

    promoted: bool
    held: bool  # the version awaits approval
    version: int
    champion: int | None  # the champion's version after the command
    reasons: list[str]


def register(params: Params) -> Registered:
    """Make the candidate in dvc.lock a version of the policy, and its reward model one of the reward model.

    The same content gives the same versions again. The policy becomes `challenger` unless it is the champion.

    Raises:
        InputError: the pipeline has not run to its end, its results do not belong together, or MLflow cannot be
            reached.
    """
    with _session(params) as session:
        return _describe(params, _register(session.store, params))


def promote(params: Params) -> Promotion:
    """Make the candidate in dvc.lock champion if the gate allows it; with registry.approval, hold it for a person.

    Returns:
        The result. The candidate is refused, with reasons, if the gate did not decide `promote`, if it is the champion,
        if it was rolled back (only `rollback` puts it back), or if a person rejected it.

    Raises:
        InputError: the gate compared with another opponent than today's champion, the pipeline's results do not
            belong together, weights are damaged or nowhere to be had, the decision log is behind the registry, or
            MLflow cannot be reached.
    """
    with _session(params) as session:
        store = session.store
        champion, candidate = find_by_alias(store, params, CHAMPION), _register(store, params)
        if champion and champion["version"] == candidate["version"]:
            if before := session.repeated("promote", candidate["md5"]):
                return _decided_before(session, before, champion)
            return _promotion(candidate, champion, [f"Version {candidate['version']} is the champion already."])
        gate = locked_json("gate", METRICS / "gate.json")
        refusal = _refusal(gate, candidate)
        session.lock.check()
        if refusal:
            _decide_once("refuse", candidate, champion, refusal, gate)
            return _promotion(candidate, champion, refusal)
        _check_opponent(candidate, champion, gate_opponent())
        if params.registry.approval:
            _decide_once("hold", candidate, champion, gate["reasons"], gate)
            return _promotion(candidate, champion, gate["reasons"], held=True)
        check_weights(store, params, candidate)
        session.lock.check()  # again: hashing takes time
        return _move(session, params, decide("promote", candidate, champion, gate["reasons"], gate))


def approve(params: Params, version_or_alias: str, by: str, reason: str) -> Promotion:
    """Make a version that awaits approval champion, because a person approves it.

    Args:
        params: all settings.
        version_or_alias: such as 3 or challenger.
        by: who approves.
        reason: why.

    Raises:
        InputError: there is no such version or it does not await approval, name or reason is missing, the champion is
            no longer the one that the gate compared with, weights are damaged or nowhere to be had, the decision log is
            behind the registry, or MLflow cannot be reached.
    """
    review = _review(by, reason)
    with _session(params) as session:
        policy, champion = _found(session, params, version_or_alias), find_by_alias(session.store, params, CHAMPION)
        if before := session.repeated("promote", policy["md5"]):
            return _decided_before(session, before, champion)
        held = _held(policy)
        policy, gate = held["policy"], held["gate"]
        _check_opponent(policy, champion, policy["record"]["opponent"])
        check_weights(session.store, params, policy)
        policy["record"]["approval"] = review
        session.lock.check()
        return _move(session, params, decide("promote", policy, champion, [review["reason"]], gate, review=review))


def reject(params: Params, version_or_alias: str, by: str, reason: str) -> Promotion:
    """Refuse a version that awaits approval, because a person rejects it: no later run promotes it or holds it again.

    Args:
        params: all settings.
        version_or_alias: such as 3 or challenger.
        by: who rejects.
        reason: why.

    Raises:
        InputError: there is no such version or it does not await approval, name or reason is missing, the decision
            log is behind the registry, or MLflow cannot be reached.
    """
    review = _review(by, reason)
    with _session(params) as session:
        policy, champion = _found(session, params, version_or_alias), find_by_alias(session.store, params, CHAMPION)
        before = session.repeated("refuse", policy["md5"])
        if before and before["review"]:
            return _decided_before(session, before, champion)
        held = _held(policy)
        session.lock.check()
        decide("refuse", held["policy"], champion, [review["reason"]], held["gate"], review=review)
        session.is_reported = True
        return _promotion(held["policy"], champion, [f"Rejected by {review['by']}: {review['reason']}"])


def rollback(params: Params, reason: str) -> Promotion:
    """Make the previous champion champion again, and the champion the previous one.

    Raises:
        InputError: no reason is given, there is no previous champion, its weights are damaged or nowhere to be had, the
            decision log is behind the registry, or MLflow cannot be reached.
    """
    reason = _text(reason)
    if not reason:
        raise InputError("a rollback needs a reason that others can read later: give one with --reason")
    with _session(params) as session:
        champion, previous = (find_by_alias(session.store, params, alias) for alias in (CHAMPION, PREVIOUS))
        if before := session.repeated("rollback"):  # a second one would bring the bad champion back
            return _decided_before(session, before, champion)
        if champion is None or previous is None:
            raise InputError("there is no previous champion to go back to: nothing has been promoted twice yet")
        check_weights(session.store, params, previous)
        gate = previous["record"]["gate"]
        session.lock.check()
        return _move(session, params, decide("rollback", previous, champion, [reason], gate))


def awaiting(params: Params, champion: PolicyVersion | None) -> list[int]:
    """List the versions that await approval and were compared with the present champion.

    Raises:
        InputError: a row of the decision log is damaged.
    """
    newest = {decision["policy"]["version"]: decision for decision in decisions_of(params.registry.policy)}
    today = champion and version_id(champion)
    return sorted(version for version, last in newest.items() if last["action"] == "hold" and last["previous"] == today)


@contextmanager
def _session(params: Params) -> Iterator[Session]:
    """Lock the registry, and apply every logged decision to it."""
    with checkout_lock():
        store = open_store(params.registry.experiment)
        with lock_server(store, params.registry.policy) as lock:
            before = unreported_decision(params.registry.policy)
            session = Session(store, lock, apply_pending(store, params, lock) or before)
            yield session
        if session.is_reported:
            mark_reported()


def _move(session: Session, params: Params, decision: Decision) -> Promotion:
    """Apply a logged change of champion to the registry."""
    apply_decision(session.store, params, decision, session.lock)
    session.is_reported = True
    return _promotion(decision["policy"], decision["policy"], decision["reasons"], promoted=True)


def _decided_before(session: Session, decision: Decision, champion: PolicyVersion | None) -> Promotion:
    """Report a decision that an earlier command made before it was killed."""
    session.is_reported = True
    is_move = decision["action"] in MOVES
    earlier = f"Decided on {decision['time']} by a command that was killed before it finished; it is finished now."
    again = ["To swap the two again, roll back once more."] if decision["action"] == "rollback" else []
    return _promotion(decision["policy"], champion, [*decision["reasons"], earlier, *again], promoted=is_move)


def _decide_once(
    action: Action, candidate: PolicyVersion, champion: PolicyVersion | None, reasons: list[str], gate: dict[str, Any]
) -> None:
    """Log a decision that moves no alias, unless the last one on the candidate is the same, for the same reasons."""
    past = decisions_on(candidate)
    new = (action, champion and version_id(champion), gate)
    if not past or (past[-1]["action"], past[-1]["previous"], past[-1]["gate"]) != new:
        decide(action, candidate, champion, reasons, gate)


def _register(store: Store, params: Params) -> PolicyVersion:
    link_runs(store)
    known, champion = trained_record(store, params), find_by_alias(store, params, CHAMPION)
    known["champion_then"] = champion and {"version": champion["version"], "md5": champion["md5"]}
    candidate = ensure_versions(store, params, known)
    if champion is None or champion["version"] != candidate["version"]:
        names = params.registry
        store.client.set_registered_model_alias(names.reward, CHALLENGER, str(candidate["reward_version"]))
        store.client.set_registered_model_alias(names.policy, CHALLENGER, str(candidate["version"]))
    return candidate


def _refusal(gate: dict[str, Any], candidate: PolicyVersion) -> list[str]:
    if gate.get("decision") != "promote":
        return [f"The gate says {gate.get('decision', 'nothing')}.", *gate.get("reasons", [])]
    decisions = decisions_of(registered_model(candidate))
    last_move = next((decision for decision in reversed(decisions) if decision["action"] in MOVES), None)
    for decision in reversed(decisions):
        is_own, previous = decision["policy"]["md5"] == candidate["md5"], decision["previous"]
        if is_own and decision["action"] in MOVES:
            return []
        when_and_why = f"on {decision['time']}: {' '.join(decision['reasons'])}"
        if is_own and (review := decision["review"]):
            return [f"Version {candidate['version']} was rejected by {review['by']} {when_and_why}"]
        if decision["action"] == "rollback" and previous and previous["md5"] == candidate["md5"]:
            cure = ["To put it back, roll back once more."] if decision is last_move else []
            return [f"Version {candidate['version']} was rolled back by {decision['who']} {when_and_why}", *cure]
    return []


def _found(session: Session, params: Params, version_or_alias: str) -> PolicyVersion:
    return read_policy_version(find(session.store, params, version_or_alias))


def _held(policy: PolicyVersion) -> Decision:
    """Find the decision to hold a version. A rejection since then does not count: people may change their mind."""
    past = [decision for decision in decisions_on(policy) if decision["action"] in MOVES or not decision["review"]]
    if not past or past[-1]["action"] != "hold":
        last = f"{past[-1]['action']} ({' '.join(past[-1]['reasons'])})" if past else "none"
        raise InputError(
            f"version {policy['version']} does not await approval, the last decision on it is {last}: "
            "trueline history lists them all"
        )
    return past[-1]


def _review(by: str, reason: str) -> Review:
    by, reason = shown_name(_text(by)), _text(reason)
    if not by or not reason:
        raise InputError("an approval or rejection needs a name and a reason: give --by and --reason")
    return Review(by=by, reason=reason)


def _text(typed: str) -> str:
    """Return what a person typed, as the decision log can hold it.

    Raises:
        InputError: the terminal sent bytes that are not UTF-8.
    """
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise InputError(f"{typed!a} is not UTF-8, as the decision log must be: type it again") from None
    return typed.strip()


def _check_opponent(candidate: PolicyVersion, champion: PolicyVersion | None, opponent: dict[str, Any]) -> None:
    today = (champion["version"], champion["md5"]) if champion else (None, None)
    if (opponent["version"], opponent["policy"]) != today:
        name = f"champion version {opponent['version']}" if opponent["version"] else "SFT"
        now = f"version {champion['version']}" if champion else "none"
        raise InputError(
            f"the gate compared version {candidate['version']} with {name}, but the champion is now {now}: "
            "run trueline run"
        )


def _describe(params: Params, candidate: PolicyVersion) -> Registered:
    return Registered(
        policy=params.registry.policy,
        version=candidate["version"],
        reward=params.registry.reward,
        reward_version=candidate["reward_version"],
        gate=candidate["record"]["gate"].get("decision", "unknown"),
    )


def _promotion(
    candidate: PolicyVersion,
    champion: PolicyVersion | None,
    reasons: list[str],
    *,
    promoted: bool = False,
    held: bool = False,
) -> Promotion:
    number = champion["version"] if champion else None
    return Promotion(promoted=promoted, held=held, version=candidate["version"], champion=number, reasons=reasons)
