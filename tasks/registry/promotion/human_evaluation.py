"""The evaluation that people annotate, as in dvc.lock, and their votes, saved with its run in MLflow."""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import REPORTS, read_json, read_jsonl, write_csv, write_json
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.dvc_outputs.stages import lock_key, locked_ingredients, output_hash
from tasks.registry.mlflow_runs.linked_runs import link_runs
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.decisions import checkout_lock
from tasks.registry.promotion.earlier_releases import figures_with_todays_names
from tasks.settings.fingerprint import flatten
from tasks.settings.params import Params

EVALUATION = REPORTS / "evaluate"
FOLDER, VOTES, FIGURES = "people", "votes.csv", "figures.json"


class Evaluation(NamedTuple):
    """The outputs of evaluate, and the settings it ran with, which may differ from those in params.yaml."""

    key: str  # hash of its inputs
    responses: list[dict[str, Any]]  # of responses.jsonl
    seed: int
    bootstrap: int
    confidence: float


def evaluation() -> Evaluation:
    """Read the evaluation in dvc.lock from DVC's cache, even if the working folder has changed since.

    Raises:
        InputError: evaluate has never run, or DVC's cache lacks its outputs.
    """
    ingredients, md5 = locked_ingredients("evaluate"), output_hash("evaluate", EVALUATION)
    if ingredients is None or md5 is None:
        raise InputError(f"dvc.lock has no {EVALUATION}: run dvc repro or trueline run")
    with tempfile.TemporaryDirectory() as folder:
        materialise(md5, Path(folder, "evaluate"))
        responses = list(read_jsonl(Path(folder, "evaluate/responses.jsonl")))
    seed, settings = (ingredients.params["params.yaml"][name] for name in ("seed", "evaluate"))
    return Evaluation(ingredients.key(), responses, seed, settings["bootstrap"], settings["confidence"])


def save_votes(params: Params, key: str, figures: Mapping[str, Any], votes: Sequence[Mapping[str, Any]]) -> str:
    """Save votes and figures with the MLflow run of the evaluation in dvc.lock, in place of earlier ones.

    Args:
        params: all settings.
        key: hash of the inputs of the evaluation that was annotated.
        figures: nested; the numbers become metrics `people/outer.inner`, None becomes NaN.
        votes: at least one; all have the fields of the first.

    Returns:
        The run's id.

    Raises:
        InputError: MLflow cannot be reached, dvc.lock has another evaluation, or the run must be restored and DVC's
            cache lacks its metrics.
    """
    with checkout_lock(), tempfile.TemporaryDirectory() as folder:
        store = open_store(params.registry.experiment)
        if lock_key("evaluate") != key:
            raise InputError(
                "dvc.lock has another evaluation than the annotation sheets: restore the dvc.lock they were made with"
            )
        run_id = next(linked.run_id for linked in link_runs(store) if linked.stage == "evaluate")
        write_csv(Path(folder, VOTES), list(votes[0]), votes)
        write_json(Path(folder, FIGURES), figures)
        store.client.log_artifacts(run_id, folder, FOLDER)
        _log_metrics(store, run_id, {**figures, "annotators": len(figures["annotators"])})
    return run_id


def saved_figures(store: Store, run_id: str) -> dict[str, Any] | None:
    """Return the figures that `save_votes` saved with a run; None if there are none."""
    if not store.client.list_artifacts(run_id, FOLDER):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return figures_with_todays_names(
            read_json(Path(store.client.download_artifacts(run_id, f"{FOLDER}/{FIGURES}", folder)))
        )


def _log_metrics(store: Store, run_id: str, figures: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    numbers = {name: math.nan if value is None else value for name, value in flatten(figures).items()}
    metrics = [
        Metric(f"{FOLDER}/{name}", float(value), now, 0)
        for name, value in numbers.items()
        if isinstance(value, int | float)
    ]
    store.client.log_batch(run_id, metrics=metrics)
