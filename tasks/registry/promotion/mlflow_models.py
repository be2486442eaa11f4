"""The loadable MLflow models and model cards of policy versions and their reward models."""

from collections.abc import Iterator

from tasks.registry.export import mlflow_model
from tasks.registry.export.card import has_reward_model
from tasks.registry.export.mlflow_model import Entry, policy_entry, reward_entry, write_mlflow_model
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.decisions import PolicyVersion
from tasks.registry.promotion.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    find_by_alias,
    registered_with,
    reward_of,
)
from tasks.settings.params import Params


def write_models(store: Store, params: Params, policy: PolicyVersion, *, upload: bool = False) -> None:
    """Write the MLflow models and cards of a policy version and its reward model, where they are missing."""
    for entry in _entries(store, params, policy):
        write_mlflow_model(store, entry, upload=upload)


def write_alias_models(store: Store, params: Params) -> None:
    """Write the MLflow models and cards of every version that has an alias, where they are missing."""
    for alias in (CHALLENGER, PREVIOUS, CHAMPION):
        found = find_by_alias(store, params, alias)
        if found:
            write_models(store, params, found, upload=alias == CHAMPION)


def check_weights(store: Store, params: Params, policy: PolicyVersion) -> None:
    """Have the weights of a policy version and its reward model, intact, before they become champion.

    Raises:
        InputError: they are damaged or missing, and cannot be written again or fetched.
    """
    for entry in _entries(store, params, policy):
        mlflow_model.check_weights(store, entry)


def _entries(store: Store, params: Params, policy: PolicyVersion) -> Iterator[Entry]:
    yield policy_entry(params.registry.policy, policy)
    if has_reward_model(policy["record"]) and reward_of(store, params, policy):
        yield reward_entry(params.registry.reward, registered_with(store, params, policy))
