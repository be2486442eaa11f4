"""Versions and aliases of policy and reward model in MLflow's registry, and keeping them true to the record.

Aliases: challenger (registered last, not promoted), champion, previous. The registered model of the policy carries the
id of the last decision that has been carried out, so that a crash between record and registry is mended, and a
checkout whose record is behind the registry is told so instead of turning the registry back.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.files import MODELS
from tasks.errors import InputError
from tasks.params import Params
from tasks.registry import tracking
from tasks.registry.decisions import DECISIONS, Decision, Holder, past_decisions
from tasks.registry.loadable import describe, make_loadable
from tasks.registry.runs import find_run
from tasks.registry.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"


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
        account=json.loads(version.tags["account"]),
    )


def ensure_versions(store: Store, params: Params, account: dict[str, Any]) -> Holder:
    """Find the versions with the candidate's content, or create them; renew an account that no decision rests on."""
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


def furnish_holders(store: Store, params: Params) -> None:
    """Give whatever holds an alias its model card, and a model that MLflow loads, where it has none yet."""
    for alias in (CHALLENGER, PREVIOUS, CHAMPION):
        found = holder(store, params, alias)
        if found:
            _furnish(store, params, found, upload=alias == CHAMPION)


def settle(store: Store, params: Params) -> None:
    """Bring the registry to where the record says it is: after a crash, or where the database is new.

    Raises:
        InputError: the registry has carried out a decision that the record lacks.
    """
    decisions = past_decisions()
    ids = [decision["id"] for decision in decisions]
    done = _carried_out(store, params)
    if done is not None and done not in ids:
        raise InputError(
            f"{DECISIONS} lacks decision {done}, which the registry has carried out: "
            "pull it from where it was made, or restore the file from git"
        )
    if ids and done != ids[-1]:
        for decision in decisions if done is None else []:
            _recreate(store, params, decision["champion"])
        carry_out(store, params, decisions[-1])


def carry_out(store: Store, params: Params, decision: Decision) -> None:
    """Move the aliases as a recorded decision says; doing it twice is doing it once."""
    client, names = store.client, params.registry
    champion, previous = decision["champion"], decision["previous"]
    text = f"{decision['action']} {decision['time']} by {decision['who']}: {' '.join(decision['reasons'])}"
    client.update_model_version(names.policy, str(champion["version"]), text[:5000])
    client.set_model_version_tag(names.policy, str(champion["version"]), "decision", decision["id"])
    _furnish(store, params, champion, upload=True)  # before the alias: what is called champion can be loaded
    for alias, place in ((PREVIOUS, previous), (CHAMPION, champion)):
        if place is not None:
            client.set_registered_model_alias(names.reward, alias, str(place["reward_version"]))
            client.set_registered_model_alias(names.policy, alias, str(place["version"]))
    challenger = holder(store, params, CHALLENGER)
    if challenger and challenger["version"] == champion["version"]:
        for name in (names.policy, names.reward):
            client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_tag(names.policy, "decision", decision["id"])


def _furnish(store: Store, params: Params, policy: Holder, *, upload: bool = False) -> None:
    make_loadable(store, params.registry.policy, policy, upload=upload)
    describe(store, params.registry.policy, policy)


def _carried_out(store: Store, params: Params) -> str | None:
    found = store.client.search_registered_models(f"name = '{params.registry.policy}'")
    return found[0].tags.get("decision") if found else None


def _was_decided_on(md5: str) -> bool:
    return any(md5 == decision["champion"]["md5"] for decision in past_decisions())


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
    model_id = model_id or tracking.log_model(store, folder, tags["md5"], tags["key"], run_id)
    source = client.get_logged_model(model_id).artifact_location
    _ensure_model(store, name)
    while True:
        version = client.create_model_version(name, source, run_id, {**tags, "model_id": model_id}, model_id=model_id)
        if int(version.version) >= number:
            return version
        client.delete_model_version(name, version.version)  # MLflow counts by itself and uses no number twice


def _policy_tags(account: dict[str, Any], reward_version: int) -> dict[str, str]:
    """Tag a policy version: the whole account, and beside it what people look for in MLflow's pages."""
    return {
        "account": json.dumps(account, ensure_ascii=False),
        "md5": account["policy"]["md5"],
        "key": account["keys"]["align"],
        "method": account["method"],
        "reward_version": str(reward_version),
        "reward_md5": account["reward"]["md5"],
        "data": account["data"]["md5"],
        "gate": account["gate"].get("decision", "unknown"),
        "git_commit": account.get("git_commit", "unknown"),
    }


def _recreate(store: Store, params: Params, lost: Holder) -> None:
    """Create a recorded version again, under its old number: opponent.json and people know it by that."""
    account, names = lost["account"], params.registry
    reward = find_version(store, names.reward, account["reward"]["md5"])
    reward = reward or _create_reward(store, params, account, lost["reward_version"])
    policy = find_version(store, names.policy, lost["md5"])
    policy = policy or _create_policy(store, params, account, lost["reward_version"], lost["version"])
    if (int(policy.version), int(reward.version)) != (lost["version"], lost["reward_version"]):
        raise InputError(
            f"the registry has {names.policy} version {policy.version} where {DECISIONS} has {lost['version']}: "
            "delete mlflow.db, or name another model as registry.policy in params.yaml, and run trueline sync"
        )
    _furnish(store, params, lost)


def _ensure_model(store: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
