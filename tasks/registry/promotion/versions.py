"""Versions and aliases of policy and reward model in MLflow's registry, and keeping them true to the record.

Aliases: challenger (registered last, not promoted), champion, previous. The registered model of the policy carries the
id of the last change of champion that has been carried out, so that a crash between record and registry is mended, and
a checkout whose record is behind the registry is told so instead of turning the registry back.
"""

import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError
from tasks.common.escapes import markdown
from tasks.common.files import MODELS
from tasks.registry.export import mlflow_model
from tasks.registry.export.mlflow_model import Entry, furnish, policy_entry, reward_entry
from tasks.registry.lineage.portable_names import without_places
from tasks.registry.mlflow_runs.lookup import find_run
from tasks.registry.mlflow_runs.outbox import log_model
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.decision_file import DECISIONS
from tasks.registry.promotion.decisions import MOVES, Decision, Holder, Place, decisions_on, past_decisions
from tasks.registry.promotion.earlier_releases import with_todays_names
from tasks.registry.promotion.server_lock import Turn, ensure_model, take_turn
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
COUNTED_TO = "counted_to"  # the number that a version is meant to have


def holder(store: Store, params: Params, alias: str) -> Holder | None:
    """Give the policy version that holds an alias, with its reward model version and account; None where none does."""
    from mlflow.exceptions import MlflowException

    try:
        return as_holder(store.client.get_model_version_by_alias(params.registry.policy, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def as_holder(version: "ModelVersion") -> Holder:
    """Read what a policy version's tags tell.

    Raises:
        InputError: the version was not registered by this project.
    """
    if "account" not in version.tags:
        raise InputError(f"{version.name} version {version.version} was not registered by trueline: choose another")
    return Holder(
        version=int(version.version),
        reward_version=int(version.tags["reward_version"]),
        md5=version.tags["md5"],
        account=without_places(with_todays_names(json.loads(version.tags["account"]))),
    )


def every_holder(store: Store, params: Params) -> list[Holder]:
    """Give every policy version that is registered, or was according to the record, by its number."""
    found = {decision["policy"]["version"]: decision["policy"] for decision in past_decisions()}
    for version in store.client.search_model_versions(f"name = '{params.registry.policy}'"):
        if "account" in version.tags:
            found[int(version.version)] = as_holder(version)
        else:
            logger.warning("%s version %s was not registered by trueline", version.name, version.version)
    return [holder for _, holder in sorted(found.items())]


def find(store: Store, params: Params, version_or_alias: str) -> "ModelVersion":
    """Find a policy version by its number or alias.

    Raises:
        InputError: there is none, and the sentence says which there are; or the record is damaged.
    """
    from mlflow.exceptions import MlflowException

    past_decisions()  # a version is told from the record, too: damaged, it stops everybody here
    name = params.registry.policy
    try:
        if version_or_alias.isdecimal():
            return store.client.get_model_version(name, version_or_alias)
        return store.client.get_model_version_by_alias(name, version_or_alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"{name} has no {version_or_alias}: {_what_there_is(store, name)}") from None


def ensure_versions(store: Store, params: Params, account: dict[str, Any]) -> Holder:
    """Find the versions with the candidate's content, or create them; renew an account that no promotion rests on."""
    reward = find_version(store, params.registry.reward, account["reward"]["md5"])
    if reward is None:
        reward = _create_reward(store, params, account)
    policy = find_version(store, params.registry.policy, account["policy"]["md5"])
    if policy is None:
        policy = _create_policy(store, params, account, int(reward.version))
    elif not _was_decided_on(policy.tags["md5"]):
        for name, value in _policy_tags(account, int(reward.version)).items():
            store.client.set_model_version_tag(policy.name, policy.version, name, value)
        policy = store.client.get_model_version(policy.name, policy.version)
    found = as_holder(policy)
    _furnish(store, params, found)
    return found


def find_version(store: Store, name: str, md5: str) -> "ModelVersion | None":
    """Find the version of a registered model by its content hash."""
    found = store.client.search_model_versions(f"name = '{name}' and tags.md5 = '{md5}'")
    return min(found, key=lambda version: int(version.version)) if found else None


def reward_of(store: Store, params: Params, policy: Holder) -> "ModelVersion | None":
    """Find the reward model version of a policy version; None where registry.reward was another name then."""
    found = find_version(store, params.registry.reward, policy["account"]["reward"]["md5"])
    return found if found and int(found.version) == policy["reward_version"] else None


def registered_with(store: Store, params: Params, policy: Holder) -> Holder:
    """Give the first policy version with a version's reward model, whose account tells how that was made.

    Later versions reuse the reward model, under another git commit perhaps.
    """
    # By content too: under another registry.reward, versions were numbered from 1 anew.
    query = (
        f"name = '{params.registry.policy}' and tags.reward_version = '{policy['reward_version']}' "
        f"and tags.reward_md5 = '{policy['account']['reward']['md5']}'"
    )
    first = min(store.client.search_model_versions(query), key=lambda version: int(version.version))
    return as_holder(first)


def furnish_holders(store: Store, params: Params) -> None:
    """Give whatever holds an alias model cards, and models that MLflow loads, where it has none yet."""
    for alias in (CHALLENGER, PREVIOUS, CHAMPION):
        found = holder(store, params, alias)
        if found:
            _furnish(store, params, found, upload=alias == CHAMPION)


def settle(store: Store, params: Params, turn: Turn | None = None) -> Decision | None:
    """Bring the registry to where the record says it is: after a crash, or where the database is new.

    Args:
        store: where the registry is.
        params: all settings.
        turn: where the caller has one; else one is taken if there is anything to bring.

    Returns:
        The change of champion that was on record and had not been carried out; None where there was none.

    Raises:
        InputError: the registry has carried out a decision that the record lacks, or another has its turn at it.
    """
    decisions, done = past_decisions(), _carried_out(store, params)
    moves = [decision for decision in decisions if decision["action"] in MOVES]
    if done is not None:
        known = [decision["id"] for decision in moves]
        if done not in known:
            raise InputError(_behind(store, params, done, moves))
        _check_chain(moves[known.index(done) :])
    if not decisions or (done and done == moves[-1]["id"]):
        return None
    if turn is None:
        with take_turn(store, params.registry.policy) as own:
            return settle(store, params, own)
    if done is None:
        _recreate(store, params, decisions)
    if not moves:
        return None
    last = moves[-1]
    which = f"{last['action']} of version {last['policy']['version']} ({last['time']})"
    logger.warning("%s has a decision that the registry has not followed yet: %s; it follows now", DECISIONS, which)
    carry_out(store, params, last, turn)
    return last


def carry_out(store: Store, params: Params, decision: Decision, turn: Turn) -> None:
    """Have the registry follow a recorded change of champion, its alias last; doing it twice is doing it once.

    Raises:
        InputError: another checkout has changed the champion meanwhile, and stays in the right.
    """
    client, names = store.client, params.registry
    champion, previous = decision["policy"], decision["previous"]
    number = str(champion["version"])
    turn.check()
    client.update_model_version(names.policy, number, markdown(_said(decision))[:5000])  # MLflow's pages show that
    moves = [each["id"] for each in past_decisions() if each["action"] in MOVES]
    after = moves[moves.index(decision["id"]) - 1] if moves[0] != decision["id"] else "none"
    tags = _policy_tags(champion["account"], champion["reward_version"])
    tags |= {"decision": decision["id"], "decided": _said(decision)[:5000], "decided_after": after}
    for tag, value in tags.items():
        client.set_model_version_tag(names.policy, number, tag, value)
    _furnish(store, params, champion, upload=True)  # before the alias: what is called champion can be loaded
    turn.check()  # again: to upload a model takes minutes
    done = _carried_out(store, params)
    if done and done not in moves:
        raise InputError(_overtaken(store, params, done, decision))
    _set_alias(store, params, PREVIOUS, previous)
    challenger = holder(store, params, CHALLENGER)
    if challenger and challenger["version"] == champion["version"]:
        for name in (names.reward, names.policy):  # the policy's last: by it a second try knows that there is one
            client.delete_registered_model_alias(name, CHALLENGER)
    _set_alias(store, params, CHAMPION, champion)
    client.set_registered_model_tag(names.policy, "decision", decision["id"])


def _check_chain(moves: list[Decision]) -> None:
    """Check that each change of champion was decided on what the one before it had made champion.

    Raises:
        InputError: one was not: its checkout was overtaken by another, and the two records have been merged since.
    """
    for before, after in pairwise(moves):
        if after["previous"] is None or after["previous"]["md5"] != before["policy"]["md5"]:
            raise InputError(
                f"{DECISIONS} has decision {after['id']} ({_said(after)}) after {before['id']}, but it was made while "
                "another version was champion, and the registry has not followed it: take its line out, and run "
                "trueline sync"
            )


def _behind(store: Store, params: Params, done: str, moves: list[Decision]) -> str:
    """Say how to come by a decision that another checkout made; one of ours that it came before decided nothing."""
    last = _carried_out_version(store, params, done)
    after = last and last.tags.get("decided_after")
    if moves and after in ("none", *(move["id"] for move in moves)) and after != moves[-1]["id"]:
        return _overtaken(store, params, done, moves[-1])
    return f"{_unknown(store, params, done)}: pull it from where it was made, or restore the file from git"


def _overtaken(store: Store, params: Params, done: str, ours: Decision) -> str:
    return (
        f"{_unknown(store, params, done)}; it was made elsewhere while this checkout was at its own: the champion "
        f"stays as it is; take the line of decision {ours['id']} out of {DECISIONS}, pull the other, and run trueline "
        "run"
    )


def _unknown(store: Store, params: Params, done: str) -> str:
    last = _carried_out_version(store, params, done)
    told = f" (version {last.version}: {last.tags['decided']})" if last and "decided" in last.tags else ""
    return f"{DECISIONS} lacks decision {done}, which the registry has carried out{told}"


def _carried_out_version(store: Store, params: Params, done: str) -> "ModelVersion | None":
    found = store.client.search_model_versions(f"name = '{params.registry.policy}' and tags.decision = '{done}'")
    return found[0] if found else None


def _set_alias(store: Store, params: Params, alias: str, place: Place | None) -> None:
    if place is not None:
        store.client.set_registered_model_alias(params.registry.reward, alias, str(place["reward_version"]))
        store.client.set_registered_model_alias(params.registry.policy, alias, str(place["version"]))


def _said(decision: Decision) -> str:
    review = decision["review"]
    approved = f", approved by {review['by']}" if review else ""
    return f"{decision['action']} {decision['time']} by {decision['who']}{approved}: {' '.join(decision['reasons'])}"


def _what_there_is(store: Store, name: str) -> str:
    models = store.client.search_registered_models(f"name = '{name}'")
    versions = sorted(int(version.version) for version in store.client.search_model_versions(f"name = '{name}'"))
    if not models or not versions:
        return "nothing has been registered yet, run trueline run"
    aliases = ", ".join(f"{alias} ({version})" for alias, version in sorted(models[0].aliases.items()))
    return f"choose one of the versions {', '.join(map(str, versions))} or of the aliases {aliases or '(none)'}"


def check_weights(store: Store, params: Params, policy: Holder) -> None:
    """Hash what a policy version and its reward model are served with, before they become champion.

    Raises:
        DamagedError: it is not what was judged, and cannot be written again.
    """
    for entry in _entries(store, params, policy):
        mlflow_model.check_weights(store, entry)


def _furnish(store: Store, params: Params, policy: Holder, *, upload: bool = False) -> None:
    """Furnish a policy version and its reward model."""
    for entry in _entries(store, params, policy):
        furnish(store, entry, upload=upload)


def _entries(store: Store, params: Params, policy: Holder) -> Iterator[Entry]:
    yield policy_entry(params.registry.policy, policy)
    if reward_of(store, params, policy):
        yield reward_entry(params.registry.reward, registered_with(store, params, policy))


def _carried_out(store: Store, params: Params) -> str | None:
    found = store.client.search_registered_models(f"name = '{params.registry.policy}'")
    return found[0].tags.get("decision") if found else None


def _was_decided_on(md5: str) -> bool:
    return any(decision["action"] in MOVES for decision in decisions_on(md5))


def _create_reward(store: Store, params: Params, account: dict[str, Any], number: int = 1) -> "ModelVersion":
    tags = {"md5": account["reward"]["md5"], "key": account["keys"]["reward"]}
    return _create(store, params.registry.reward, MODELS / "reward", tags, number)


def _create_policy(
    store: Store, params: Params, account: dict[str, Any], reward_version: int, number: int = 1
) -> "ModelVersion":
    tags = _policy_tags(account, reward_version)
    return _create(store, params.registry.policy, Path(account["policy"]["path"]), tags, number)


def _create(store: Store, name: str, folder: Path, tags: dict[str, str], number: int) -> "ModelVersion":
    """Create a version, numbered at least `number`, that points at its run's logged model, which points at DVC's."""
    client, run = store.client, find_run(store, tags["key"])
    run_id = run.info.run_id if run else None
    model_id = run.data.tags.get("model_id") if run else None
    model_id = model_id or log_model(store, folder, tags["md5"], tags["key"], run_id)
    source = client.get_logged_model(model_id).artifact_location
    ensure_model(store, name)
    while True:
        known = {**tags, "model_id": model_id, COUNTED_TO: str(number)}
        version = client.create_model_version(name, source, run_id, known, model_id=model_id)
        if int(version.version) >= number:
            return version
        client.delete_model_version(name, version.version)  # MLflow counts by itself and uses no number twice


def _policy_tags(account: dict[str, Any], reward_version: int) -> dict[str, str]:
    """Tag a policy version: the whole account, and beside it what people look for in MLflow's pages."""
    return {
        "account": json.dumps(without_places(account), ensure_ascii=False),
        "md5": account["policy"]["md5"],
        "key": account["keys"]["align"],
        "method": account["method"],
        "reward_version": str(reward_version),
        "reward_md5": account["reward"]["md5"],
        "data": account["data"]["md5"],
        "gate": account["gate"].get("decision", "unknown"),
        "git_commit": account.get("git_commit", "unknown"),
    }


def _recreate(store: Store, params: Params, decisions: list[Decision]) -> None:
    """Create recorded versions again, under their old numbers: opponent.json and people know them by those."""
    lost = {decision["policy"]["version"]: decision["policy"] for decision in decisions}  # the newest account of each
    for policy in sorted(lost.values(), key=lambda policy: policy["reward_version"]):
        account, number = policy["account"], policy["reward_version"]
        reward = _found_again(store, params.registry.reward, account["reward"]["md5"], number)
        _check_number(reward or _create_reward(store, params, account, number), number)
    for number, policy in sorted(lost.items()):
        found = _found_again(store, params.registry.policy, policy["md5"], number)
        if found is None:
            found = _create_policy(store, params, policy["account"], policy["reward_version"], number)
            _furnish(store, params, policy)
        _check_number(found, number)


def _found_again(store: Store, name: str, md5: str, number: int) -> "ModelVersion | None":
    """Find a version by its content; what a kill left of counting to its number is deleted."""
    found = find_version(store, name, md5)
    if found and int(found.version) < number and found.tags.get(COUNTED_TO) == str(number):
        store.client.delete_model_version(name, found.version)
        return None
    return found


def _check_number(version: "ModelVersion", recorded: int) -> None:
    if int(version.version) != recorded:
        raise InputError(
            f"the registry has {version.name} version {version.version} where {DECISIONS} has {recorded}: "
            "delete mlflow.db, or name another model as registry.policy in params.yaml, and run trueline sync"
        )
