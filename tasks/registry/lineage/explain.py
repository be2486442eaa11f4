"""Explaining a policy version, and listing every decision."""

from typing import Any

from tasks.registry.export.card import has_reward_model
from tasks.registry.export.deleted_weights import WEIGHTS_DELETED
from tasks.registry.export.mlflow_model import card_path
from tasks.registry.mlflow_runs.linked_runs import TRACKED, find_run
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.decisions import Decision, decisions_of, decisions_on, version_id
from tasks.registry.promotion.versions import find, read_policy_version, reward_of
from tasks.settings.params import Params


def why(params: Params, version_or_alias: str) -> dict[str, Any]:
    """Return everything known about a policy version.

    Returns:
        Plain data: version, aliases, weights_deleted (the day, if `trueline gc` deleted them), card and reward_card
        (paths of the model cards), policy, method, reward (with its version), sft, base, data (hash and counts), hub
        (repositories behind the sources), figures (of base, reward and evaluate), gate (checks and decision), approval
        (by and reason, if a person gave it), opponent, champion_then, params, keys, git_commit, git_dirty, lock_file,
        runs (MLflow run id by stage, None if MLflow has none), decisions (all of them on this version).

    Raises:
        InputError: there is no such version or alias; the message lists them.
    """
    store = open_store(params.registry.experiment)
    version = find(store, params, version_or_alias)
    policy = read_policy_version(version)
    record = policy["record"]
    reward = reward_of(store, params, policy) if has_reward_model(record) else None
    record["reward"]["version"] = policy["reward_version"]
    return {
        "version": policy["version"],
        "aliases": list(version.aliases),
        "weights_deleted": version.tags.get(WEIGHTS_DELETED),
        "card": card_path(store, version),
        "reward_card": reward and card_path(store, reward),
        **record,
        # A version that was registered before a stage existed has no key of it.
        "runs": {stage: _run_id(store, record["keys"][stage]) for stage in TRACKED if stage in record["keys"]},
        "decisions": [_without_record(decision) for decision in decisions_on(policy)],
    }


def history(params: Params) -> list[dict[str, Any]]:
    """List every decision on versions of `registry.policy`, oldest first, without the model records.

    Raises:
        InputError: a row of the decision log is damaged.
    """
    return [_without_record(decision) for decision in decisions_of(params.registry.policy)]


def _without_record(decision: Decision) -> dict[str, Any]:
    return {**decision, "policy": version_id(decision["policy"])}


def _run_id(store: Store, key: str) -> str | None:
    run = find_run(store, key)
    return run.info.run_id if run else None
