"""Linking each stage in dvc.lock with its MLflow run, found by content key or restored from files."""

import csv
import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.files import CURVES, METRICS, MODELS
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.dvc_outputs.graph import plan
from tasks.registry.dvc_outputs.stages import Ingredients, lock_key, locked_ingredients, output_hashes
from tasks.registry.mlflow_runs import tracking
from tasks.registry.mlflow_runs.send_queue import log_model, send_saved
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.candidate import locked_json, model_record
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities import Run

TRACKED = ("sft", "reward", "held_out_reward", "align", "evaluate")
TRAINED_WITH = ("git_commit", "git_dirty", "lock_file", "seed", "device")
MAX_PIPELINES = 200  # a tag of MLflow has at most 8000 characters

logger = logging.getLogger(__name__)


class LinkedRun(NamedTuple):
    """The run behind a stage's outputs in dvc.lock."""

    stage: str
    status: str  # ran, reused (made for an earlier pipeline result), restored (from files)
    run_id: str
    alarm: str | None  # same key, other outputs: the stage is not deterministic


def link_runs(store: Store) -> list[LinkedRun]:
    """Find or restore the run of every tracked stage in dvc.lock, and tag its outputs; repeatable without harm.

    Raises:
        InputError: a run must be restored and DVC's cache lacks its metrics or curve.
    """
    send_saved(store)
    tracking.end_abandoned(store)
    pipeline = _pipeline()
    linked = []
    for stage in TRACKED:
        ingredients = locked_ingredients(stage)
        if ingredients is not None:
            linked.append(_link(store, stage, ingredients, pipeline))
    return linked


def find_run(store: Store, key: str) -> "Run | None":
    """Find the finished run with a content key: the one that a result uses already, or else the first."""
    found = _finished(store, key)
    return found[0] if found else None


def trained_record(store: Store, params: Params) -> dict[str, Any]:
    """Return the candidate's model record, with code and device of the run that trained it.

    Raises:
        InputError: the pipeline has not finished, or its results do not belong together.
    """
    known = model_record(params)
    run = find_run(store, known["keys"]["align"])
    return known | {name: value for name, value in (run.data.tags if run else {}).items() if name in TRAINED_WITH}


def _finished(store: Store, key: str) -> "list[Run]":
    query = f"tags.key = '{key}' and attributes.status = 'FINISHED'"
    found = list(store.client.search_runs([store.experiment_id], query))
    return sorted(found, key=lambda run: ("used_by" not in run.data.tags, run.info.start_time, run.info.run_id))


def _pipeline() -> str:
    """Return a name for the result in dvc.lock, from the keys of all its stages."""
    keys = json.dumps({stage: lock_key(stage) for stage in plan()})
    return hashlib.sha256(keys.encode()).hexdigest()[:16]


def _link(store: Store, stage: str, ingredients: Ingredients, pipeline: str) -> LinkedRun:
    key, outputs = ingredients.key(), output_hashes(stage)
    runs = _finished(store, key)
    alarm = _alarm(stage, runs, outputs)
    run_id = runs[0].info.run_id if runs else _restore(store, stage, ingredients, outputs)
    run = store.client.get_run(run_id)
    if alarm is None:
        store.client.set_tag(run_id, "outputs", json.dumps(outputs))
        _drop_repeated(store, run, runs[1:])
    for folder in _models(outputs) if "model_id" not in run.data.tags else ():
        model_id = log_model(store, folder, outputs[folder.as_posix()], key, run_id)
        store.client.set_tag(run_id, "model_id", model_id)
    return LinkedRun(stage, _status(store, run, pipeline), run_id, alarm)


def _drop_repeated(store: Store, first: "Run", others: "list[Run]") -> None:
    """Delete a repeated run: its stage was killed after the run had ended and before DVC had taken the outputs.

    The stage ran again and wrote the same bytes. MLflow keeps deleted runs (`mlflow runs restore`). A run of another
    machine stays.
    """
    for run in others:
        host, its_host = (each.data.tags.get("process", "").rpartition(":")[0] for each in (first, run))
        same = run.data.tags.get("status") == first.data.tags.get("status")  # one that ran has more than a restored one
        if same and host and host == its_host:
            store.client.set_tag(run.info.run_id, "repeats", first.info.run_id)
            store.client.delete_run(run.info.run_id)


def _alarm(stage: str, runs: "list[Run]", outputs: dict[str, str]) -> str | None:
    for run in runs:
        before: dict[str, str] = json.loads(run.data.tags.get("outputs", "{}"))
        changed = [path for path, md5 in before.items() if outputs.get(path, md5) != md5]
        if changed:
            alarm = (
                f"{stage} is not deterministic: run {run.info.run_id} had the same command, data and parameters "
                f"but wrote another {', '.join(changed)} than dvc.lock has"
            )
            logger.warning(alarm)
            return alarm
    return None


def _status(store: Store, run: "Run", pipeline: str) -> str:
    """Return the status of a run for a pipeline result; its tag lists the results that use it, the first made it."""
    used_by: list[str] = json.loads(run.data.tags.get("used_by", "[]"))
    if pipeline not in used_by:
        used_by.append(pipeline)
        store.client.set_tag(run.info.run_id, "used_by", json.dumps(used_by[:MAX_PIPELINES]))
    return "reused" if used_by[0] != pipeline else run.data.tags.get("status", "ran")


def _restore(store: Store, stage: str, ingredients: Ingredients, outputs: dict[str, str]) -> str:
    """Restore a run from what DVC has: metrics, curve, model."""
    name = next((folder.name for folder in _models(outputs)), stage)
    run = tracking.restored_run(store, name, ingredients)
    for path in map(Path, outputs):
        if path.is_relative_to(CURVES):
            for row in _curve(outputs[path.as_posix()]):
                run.log(int(row.pop("step")), {metric: float(value) for metric, value in row.items() if value})
        elif path.is_relative_to(METRICS):
            run.summary(locked_json(stage, path))
    run.close("FINISHED")
    return run.id


def _curve(md5: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        materialise(md5, Path(folder, "curve.csv"))
        with Path(folder, "curve.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def _models(outputs: dict[str, str]) -> list[Path]:
    return [Path(path) for path in outputs if Path(path).is_relative_to(MODELS)]
