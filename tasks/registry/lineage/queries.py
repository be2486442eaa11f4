"""Questions to the registry: which runs gave these files, why is this model what it is, what was ever decided."""

from typing import Any, TypedDict

from tasks.registry.export.mlflow_model import card_place
from tasks.registry.mlflow_runs.lookup import TRACKED, find_run, link_runs
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.decisions import Decision, decisions_on, one_at_a_time, past_decisions, place
from tasks.registry.promotion.versions import as_holder, find, furnish_holders, reward_of, settle
from tasks.settings.params import Params


class Synced(TypedDict):
    """What `sync` found or made."""

    stages: list[dict[str, Any]]  # stage, status (ran, reused or restored), run_id, alarm
    alarms: list[str]


def sync(params: Params) -> Synced:
    """Bring MLflow up to what dvc.lock and the record say; repeatable without harm.

    Each tracked stage's run is found by its key, or written anew from the files where MLflow has none. Versions
    and aliases come back from the record where the database is new, with model cards and weights that MLflow loads.

    Raises:
        InputError: MLflow is away, the record is behind the registry, or a run must be written anew and DVC's cache
            lacks its files.
    """
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        linked = link_runs(store)
        settle(store, params)
        furnish_holders(store, params)
    return Synced(stages=[run._asdict() for run in linked], alarms=[run.alarm for run in linked if run.alarm])


def why(params: Params, version_or_alias: str) -> dict[str, Any]:
    """Tell everything known of a policy version.

    Returns:
        Plain data: version, aliases, card and reward_card (where the model cards lie), policy, method, reward (with its
        exact version), sft, base, data (hash and counts), hub (repositories behind the sources), figures (of base,
        reward and evaluate), gate (checks and decision), approval (by and reason, where a person gave it), opponent,
        champion_then, params, keys, git_commit, git_dirty, lock_file, runs (MLflow run id by stage, None where MLflow
        has none), decisions (of every kind, on this version).

    Raises:
        InputError: there is no such version or alias; the sentence says which there are.
    """
    store = open_store(params.registry.experiment)
    version = find(store, params, version_or_alias)
    found = as_holder(version)
    reward = reward_of(store, params, found)
    known = found["account"]
    known["reward"]["version"] = found["reward_version"]
    return {
        "version": found["version"],
        "aliases": list(version.aliases),
        "card": card_place(store, version.tags["model_id"]),
        "reward_card": reward and card_place(store, reward.tags["model_id"]),
        **known,
        # A version that was registered before a stage was thought of has no key of it.
        "runs": {stage: _run_id(store, known["keys"][stage]) for stage in TRACKED if stage in known["keys"]},
        "decisions": [_brief(decision) for decision in decisions_on(found["md5"])],
    }


def history() -> list[dict[str, Any]]:
    """List every decision ever made, oldest first, without the accounts of the models.

    Raises:
        InputError: a row of the record is damaged.
    """
    return [_brief(decision) for decision in past_decisions()]


def _brief(decision: Decision) -> dict[str, Any]:
    return {**decision, "policy": place(decision["policy"])}


def _run_id(store: Store, key: str) -> str | None:
    run = find_run(store, key)
    return run.info.run_id if run else None
