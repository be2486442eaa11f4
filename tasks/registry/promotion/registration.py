"""Registering a candidate: its policy and its reward model become versions in MLflow's registry."""

from typing import Any

from tasks.registry.export.deleted_weights import forget_deletion
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.decisions import MOVES, PolicyVersion, decisions_on
from tasks.registry.promotion.mlflow_models import write_models
from tasks.registry.promotion.versions import (
    create_policy,
    create_reward,
    find_version,
    policy_tags,
    read_policy_version,
)
from tasks.settings.params import Params


def ensure_versions(store: Store, params: Params, record: dict[str, Any]) -> PolicyVersion:
    """Find the versions with the candidate's content, or create them.

    The model record of a version that has never been promoted is replaced: it may have a new evaluation.
    """
    reward = find_version(store, params.registry.reward, record["reward"]["md5"])
    if reward is None:
        reward = create_reward(store, params, record)
    policy = find_version(store, params.registry.policy, record["policy"]["md5"])
    if policy is None:
        policy = create_policy(store, params, record, int(reward.version))
    elif not _was_promoted(read_policy_version(policy)):
        for name, value in policy_tags(record, int(reward.version)).items():
            store.client.set_model_version_tag(policy.name, policy.version, name, value)
        policy = store.client.get_model_version(policy.name, policy.version)
    for version in (reward, policy):
        forget_deletion(store, version)
    found = read_policy_version(policy)
    write_models(store, params, found)
    return found


def _was_promoted(policy: PolicyVersion) -> bool:
    return any(decision["action"] in MOVES for decision in decisions_on(policy))
