"""Bringing MLflow up to date with dvc.lock and the decision log."""

from typing import Any, TypedDict

from tasks.registry.mlflow_runs.linked_runs import link_runs
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.apply_decisions import apply_pending
from tasks.registry.promotion.decisions import checkout_lock
from tasks.registry.promotion.mlflow_models import write_alias_models
from tasks.settings.params import Params


class Synced(TypedDict):
    """What `sync` found or created."""

    stages: list[dict[str, Any]]  # stage, status (ran, reused or restored), run_id, alarm
    alarms: list[str]


def sync(params: Params) -> Synced:
    """Bring MLflow up to date with dvc.lock and the decision log; repeatable without harm.

    The run of each tracked stage is found by its key, or restored from files if MLflow has none. A new database gets
    versions and aliases back from the decision log, with model cards and weights that MLflow loads.

    Raises:
        InputError: MLflow cannot be reached, the decision log is behind the registry, or a run must be restored and
            DVC's cache lacks its files.
    """
    with checkout_lock():
        store = open_store(params.registry.experiment)
        linked = link_runs(store)
        apply_pending(store, params)
        write_alias_models(store, params)
    return Synced(stages=[run._asdict() for run in linked], alarms=[run.alarm for run in linked if run.alarm])
