"""Versions of the policy and the reward model in MLflow's registry: finding, reading and creating them.

Aliases: challenger (registered last, not promoted), champion, previous.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.registry.lineage.redaction import redact_record
from tasks.registry.mlflow_runs.linked_runs import find_run
from tasks.registry.mlflow_runs.send_queue import log_model
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.decisions import PolicyVersion, decisions_of, past_decisions
from tasks.registry.promotion.earlier_releases import EARLIER_RECORD, with_todays_names
from tasks.registry.promotion.server_lock import ensure_model
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
RECORD_TAG = "model_record"
INTENDED_NUMBER_TAG = "counted_to"  # the number that a version is meant to have
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for an unknown version or alias


def find_by_alias(store: Store, params: Params, alias: str) -> PolicyVersion | None:
    """Return the policy version with an alias; None if no version has it."""
    from mlflow.exceptions import MlflowException

    try:
        return read_policy_version(store.client.get_model_version_by_alias(params.registry.policy, alias))
    except MlflowException as error:
        if error.error_code in NOT_FOUND:
            return None
        raise


def read_policy_version(version: "ModelVersion") -> PolicyVersion:
    """Read a policy version from its tags; its record names the registered model that has it.

    Raises:
        InputError: the version was not registered by this project, or its record is damaged.
    """
    tag = _record_tag(version)
    if tag is None:
        raise InputError(f"{version.name} version {version.version} was not registered by trueline: choose another")
    try:
        record = redact_record(with_todays_names(json.loads(tag)))
    except ValueError as error:
        raise lost(version.name, version.version, f"a damaged tag {RECORD_TAG}") from error
    record["policy"]["name"] = version.name  # an earlier release copied versions into a model of another name
    return PolicyVersion(
        version=int(version.version),
        reward_version=int(version.tags["reward_version"]),
        md5=version.tags["md5"],
        record=record,
    )


def all_policy_versions(store: Store, params: Params) -> list[PolicyVersion]:
    """List every policy version in the registry or in the decision log, by number."""
    return policy_versions(store, params.registry.policy)


def policy_versions(store: Store, name: str) -> list[PolicyVersion]:
    """List every version of a policy's registered model, in the registry or in the decision log, by number."""
    found = {decision["policy"]["version"]: decision["policy"] for decision in decisions_of(name)}
    for version in store.client.search_model_versions(f"name = '{name}'"):
        if is_policy_version(version):
            found[int(version.version)] = read_policy_version(version)
        else:
            logger.warning("%s version %s was not registered by trueline", version.name, version.version)
    return [policy for _, policy in sorted(found.items())]


def is_policy_version(version: "ModelVersion") -> bool:
    """Return whether this project registered a version as a policy."""
    return _record_tag(version) is not None


def find(store: Store, params: Params, version_or_alias: str) -> "ModelVersion":
    """Find a policy version by its number or alias.

    Raises:
        InputError: there is none (the message lists versions and aliases), or the decision log is damaged.
    """
    from mlflow.exceptions import MlflowException

    past_decisions()  # while the log is damaged, no command may act
    name = params.registry.policy
    try:
        if version_or_alias.isdecimal():
            return store.client.get_model_version(name, version_or_alias)
        return store.client.get_model_version_by_alias(name, version_or_alias)
    except MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        raise InputError(f"{name} has no {version_or_alias}: {_choices(store, name)}") from None


def find_version(store: Store, name: str, md5: str) -> "ModelVersion | None":
    """Find the version of a registered model by its content hash."""
    found = store.client.search_model_versions(f"name = '{name}' and tags.md5 = '{md5}'")
    return min(found, key=lambda version: int(version.version)) if found else None


def reward_of(store: Store, params: Params, policy: PolicyVersion) -> "ModelVersion | None":
    """Find the reward model version of a policy version; None if registry.reward had another name at that time."""
    found = find_version(store, params.registry.reward, policy["record"]["reward"]["md5"])
    return found if found and int(found.version) == policy["reward_version"] else None


def registered_with(store: Store, params: Params, policy: PolicyVersion) -> PolicyVersion:
    """Return the first policy version with the same reward model: its record says how the reward model was made.

    Later policy versions reuse the reward model, perhaps under another git commit.
    """
    # By content too: under another registry.reward, versions were numbered from 1 anew.
    query = (
        f"name = '{params.registry.policy}' and tags.reward_version = '{policy['reward_version']}' "
        f"and tags.reward_md5 = '{policy['record']['reward']['md5']}'"
    )
    first = min(store.client.search_model_versions(query), key=lambda version: int(version.version))
    return read_policy_version(first)


def create_reward(store: Store, params: Params, record: dict[str, Any], number: int = 1) -> "ModelVersion":
    """Create a version of the reward model in a model record, numbered at least `number`."""
    tags = {"md5": record["reward"]["md5"], "key": record["keys"]["reward"]}
    return _create(store, params.registry.reward, MODELS / "reward", tags, number)


def create_policy(
    store: Store, params: Params, record: dict[str, Any], reward_version: int, number: int = 1
) -> "ModelVersion":
    """Create a version of the policy in a model record, numbered at least `number`."""
    tags = policy_tags(record, reward_version)
    return _create(store, params.registry.policy, Path(record["policy"]["path"]), tags, number)


def logged_model_of(store: Store, version: "ModelVersion") -> "LoggedModel":
    """Return the logged model that a version points to.

    Raises:
        InputError: it has been deleted.
    """
    found = _logged_model(store, version.tags.get("model_id"))
    if found is None:
        raise lost(version.name, version.version, "lost its logged model")
    return found


def lost(name: str, number: int | str, what: str) -> InputError:
    """Say what a version has lost in MLflow, and how it is made again."""
    return InputError(
        f"{name} version {number} has {what} in MLflow: delete the whole registered model {name} there, and run "
        "trueline sync, which makes its versions again"
    )


def _logged_model(store: Store, model_id: str | None) -> "LoggedModel | None":
    from mlflow.exceptions import MlflowException

    if model_id is None:
        return None
    try:
        return store.client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        return None


def _record_tag(version: "ModelVersion") -> str | None:
    return version.tags.get(RECORD_TAG, version.tags.get(EARLIER_RECORD))


def policy_tags(record: dict[str, Any], reward_version: int) -> dict[str, str]:
    """Return the tags of a policy version: the whole model record, and what people look for in MLflow's pages."""
    return {
        RECORD_TAG: json.dumps(redact_record(record), ensure_ascii=False),
        "md5": record["policy"]["md5"],
        "key": record["keys"]["align"],
        "method": record["method"],
        "reward_version": str(reward_version),
        "reward_md5": record["reward"]["md5"],
        "data": record["data"]["md5"],
        "gate": record["gate"].get("decision", "unknown"),
        "git_commit": record.get("git_commit", "unknown"),
    }


def _create(store: Store, name: str, folder: Path, tags: dict[str, str], number: int) -> "ModelVersion":
    """Create a version that points at its run's logged model, which points at the model in DVC."""
    client, run = store.client, find_run(store, tags["key"])
    run_id = run.info.run_id if run else None
    logged = _logged_model(store, run.data.tags.get("model_id")) if run else None
    model_id = logged.model_id if logged else log_model(store, folder, tags["md5"], tags["key"], run_id)
    source = client.get_logged_model(model_id).artifact_location
    ensure_model(store, name)
    while True:
        known = {**tags, "model_id": model_id, INTENDED_NUMBER_TAG: str(number)}
        version = client.create_model_version(name, source, run_id, known, model_id=model_id)
        if int(version.version) >= number:
            return version
        client.delete_model_version(name, version.version)  # MLflow chooses numbers, and uses none twice


def _choices(store: Store, name: str) -> str:
    models = store.client.search_registered_models(f"name = '{name}'")
    versions = sorted(int(version.version) for version in store.client.search_model_versions(f"name = '{name}'"))
    if not models or not versions:
        return "nothing has been registered yet, run trueline run"
    aliases = ", ".join(f"{alias} ({version})" for alias, version in sorted(models[0].aliases.items()))
    return f"choose one of the versions {', '.join(map(str, versions))} or of the aliases {aliases or '(none)'}"
