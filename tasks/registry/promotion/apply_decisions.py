"""Making MLflow's registry follow the decision log: aliases, tags, and versions that a new database lacks.

The registered model of the policy carries the id of the last change of champion that was applied. So a crash between
log and registry is repaired, and a checkout whose log lacks a decision says so and does not turn the registry back.
"""

import logging
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.escapes import markdown
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.decision_log import DECISIONS
from tasks.registry.promotion.decisions import MOVES, Decision, VersionId, decisions_of, past_decisions
from tasks.registry.promotion.mlflow_models import write_models
from tasks.registry.promotion.server_lock import ServerLock, lock_server
from tasks.registry.promotion.versions import (
    CHALLENGER,
    CHAMPION,
    INTENDED_NUMBER_TAG,
    PREVIOUS,
    create_policy,
    create_reward,
    find_by_alias,
    find_version,
    lost,
    policy_tags,
)
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REASONS = ": "  # between what was decided and why
logger = logging.getLogger(__name__)


def apply_pending(store: Store, params: Params, lock: ServerLock | None = None) -> Decision | None:
    """Apply what the decision log has and the registry lacks: after a crash, or with a new database.

    Args:
        store: the registry.
        params: all settings.
        lock: the caller's lock; without one, a lock is taken if there is anything to apply.

    Returns:
        The change of champion that was logged and not applied; None if there was none.

    Raises:
        InputError: the registry has applied a decision that the log lacks, or another process keeps the lock.
    """
    decisions, applied = decisions_of(params.registry.policy), applied_decision(store, params)
    moves = [decision for decision in decisions if decision["action"] in MOVES]
    if applied is not None:
        known = [decision["id"] for decision in moves]
        if applied not in known:
            raise InputError(_missing_decision(store, params, applied, moves))
        _check_order(moves[known.index(applied) :])
    if not decisions:
        return None
    lacks_version = bool(moves) and _lacks_version(store, params, moves[-1])
    is_applied = applied is not None and applied == moves[-1]["id"]
    if is_applied and not lacks_version:
        return None
    if lock is None:
        with lock_server(store, params.registry.policy) as own:
            return apply_pending(store, params, own)
    if applied is None or lacks_version:
        _recreate_versions(store, params, decisions)
    if not moves:
        return None
    last = moves[-1]
    which = f"{last['action']} of version {last['policy']['version']} ({last['time']})"
    logger.warning("%s has a decision that the registry has not followed yet: %s; it follows now", DECISIONS, which)
    apply_decision(store, params, last, lock)
    return None if is_applied else last


def apply_decision(store: Store, params: Params, decision: Decision, lock: ServerLock) -> None:
    """Apply a logged change of champion to the registry, the champion's alias last; repeatable without harm.

    Raises:
        InputError: another checkout has changed the champion in the meantime; its decision stays.
    """
    client, names = store.client, params.registry
    champion, previous = decision["policy"], decision["previous"]
    number = str(champion["version"])
    lock.check()
    client.update_model_version(names.policy, number, markdown(_summary(decision))[:5000])  # shown in MLflow's pages
    moves = [each["id"] for each in decisions_of(names.policy) if each["action"] in MOVES]
    before = moves[moves.index(decision["id"]) - 1] if moves[0] != decision["id"] else "none"
    tags = policy_tags(champion["record"], champion["reward_version"])
    tags |= {"decision": decision["id"], "decided": _summary(decision)[:5000], "decided_after": before}
    for tag, value in tags.items():
        client.set_model_version_tag(names.policy, number, tag, value)
    write_models(store, params, champion, upload=True)  # before the alias: a champion can always be loaded
    lock.check()  # again: an upload takes minutes
    applied = applied_decision(store, params)
    if applied and applied not in moves:
        raise InputError(_lost_race(store, params, applied, decision))
    _move_alias(store, params, PREVIOUS, previous)
    challenger = find_by_alias(store, params, CHALLENGER)
    if challenger and challenger["version"] == champion["version"]:
        for name in (names.reward, names.policy):  # the policy's last: a second try sees by it that work is left
            client.delete_registered_model_alias(name, CHALLENGER)
    _move_alias(store, params, CHAMPION, champion)
    client.set_registered_model_tag(names.policy, "decision", decision["id"])


def _check_order(moves: list[Decision]) -> None:
    """Check that each change of champion started from the champion of the one before it.

    Raises:
        InputError: one did not: another checkout was faster, and the two logs were merged since.
    """
    for before, after in pairwise(moves):
        if after["previous"] is None or after["previous"]["md5"] != before["policy"]["md5"]:
            raise InputError(
                f"{DECISIONS} has decision {after['id']} ({_heading(after)}) after {before['id']}, but it was made "
                "while another version was champion, and the registry has not followed it: run trueline merge, which "
                "puts its line before that one"
            )


def _missing_decision(store: Store, params: Params, applied: str, moves: list[Decision]) -> str:
    """Say how to get a decision that another checkout made, and what to do with one of ours that it overtook."""
    if any(decision["id"] == applied for decision in past_decisions()):  # as an earlier release did under a new name
        name = params.registry.policy
        return (
            f"the registered model {name} follows decision {applied}, which {DECISIONS} has for another model: delete "
            f"{name} in MLflow, or name another as registry.policy in params.yaml"
        )
    last = _applied_version(store, params, applied)
    after = last and last.tags.get("decided_after")
    if moves and after in ("none", *(move["id"] for move in moves)) and after != moves[-1]["id"]:
        return _lost_race(store, params, applied, moves[-1])
    return (
        f"{_not_in_log(store, params, applied)}: pull it from where it was made (trueline merge), or restore the file"
    )


def _lost_race(store: Store, params: Params, applied: str, ours: Decision) -> str:
    return (
        f"{_not_in_log(store, params, applied)}; another checkout made it while this one was deciding: the champion "
        f"stays as it is, and decision {ours['id']} does not count: run trueline merge once the other is pushed, and "
        "trueline run"
    )


def _not_in_log(store: Store, params: Params, applied: str) -> str:
    last = _applied_version(store, params, applied)
    decided = last and last.tags.get("decided")
    what = f" (version {last.version}: {decided.partition(REASONS)[0]})" if last and decided else ""
    return f"{DECISIONS} lacks decision {applied}, which the registry has carried out{what}"


def applied_decision(store: Store, params: Params) -> str | None:
    """Return the id of the change of champion that the registry has followed last; None if there was none."""
    found = store.client.search_registered_models(f"name = '{params.registry.policy}'")
    return found[0].tags.get("decision") if found else None


def _applied_version(store: Store, params: Params, applied: str) -> "ModelVersion | None":
    query = f"name = '{params.registry.policy}' and tags.decision = '{applied}'"
    found = store.client.search_model_versions(query)
    return found[0] if found else None


def _move_alias(store: Store, params: Params, alias: str, version: VersionId | None) -> None:
    if version is not None:
        store.client.set_registered_model_alias(params.registry.reward, alias, str(version["reward_version"]))
        store.client.set_registered_model_alias(params.registry.policy, alias, str(version["version"]))


def _summary(decision: Decision) -> str:
    return f"{_heading(decision)}{REASONS}{' '.join(decision['reasons'])}"


def _heading(decision: Decision) -> str:
    review = decision["review"]
    approved = f", approved by {review['by']}" if review else ""
    return f"{decision['action']} {decision['time']} by {decision['who']}{approved}"


def _recreate_versions(store: Store, params: Params, decisions: list[Decision]) -> None:
    """Create the logged versions again under their old numbers, by which opponent.json and people know them."""
    newest = {decision["policy"]["version"]: decision["policy"] for decision in decisions}
    shared = [  # policies of other names count the versions of the same reward model
        decision["policy"]
        for decision in past_decisions()
        if decision["policy"]["record"]["reward"].get("name") == params.registry.reward
    ]
    for policy in sorted([*shared, *newest.values()], key=lambda policy: policy["reward_version"]):
        record, number = policy["record"], policy["reward_version"]
        reward = _find_recreated(store, params.registry.reward, record["reward"]["md5"], number)
        if reward:
            _check_number(reward, number)
        else:
            _check_made(store, create_reward(store, params, record, number), number)
    for number, policy in sorted(newest.items()):
        found = _find_recreated(store, params.registry.policy, policy["md5"], number)
        if found:
            _check_number(found, number)
        else:
            _check_made(store, create_policy(store, params, policy["record"], policy["reward_version"], number), number)
            write_models(store, params, policy)


def _lacks_version(store: Store, params: Params, decision: Decision) -> bool:
    """Tell whether the registry lacks a version that a decision names: it is older, or somebody has deleted it."""
    versions = filter(None, (decision["policy"], decision["previous"]))
    if any(find_version(store, params.registry.policy, version["md5"]) is None for version in versions):
        return True
    reward = decision["policy"]["record"]["reward"]
    is_own = reward.get("name") == params.registry.reward  # else registry.reward had another name at that time
    return is_own and find_version(store, params.registry.reward, reward["md5"]) is None


def _find_recreated(store: Store, name: str, md5: str, number: int) -> "ModelVersion | None":
    """Find a version by its content; delete one with a lower number, left by a kill on the way to the right one."""
    found = find_version(store, name, md5)
    if found and int(found.version) < number and found.tags.get(INTENDED_NUMBER_TAG) == str(number):
        store.client.delete_model_version(name, found.version)
        return None
    return found


def _check_made(store: Store, version: "ModelVersion", number: int) -> None:
    """Check that a version was made again under its old number; MLflow gives none twice, also not a deleted one's."""
    if int(version.version) != number:
        store.client.delete_model_version(version.name, version.version)
        raise lost(version.name, number, "been deleted")


def _check_number(version: "ModelVersion", logged: int) -> None:
    if int(version.version) != logged:
        raise InputError(
            f"the registry has {version.name} version {version.version} where {DECISIONS} has {logged}: "
            f"delete the registered model {version.name} in MLflow, and run trueline sync"
        )
