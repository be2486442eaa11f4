"""Finding the MLflow run of each stage in dvc.lock, by content key, or writing it anew from the files."""

import csv
import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.files import CURVES, METRICS, MODELS
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.dvc_outputs.stages import Ingredients, lock_key, locked_ingredients, output_hashes, plan
from tasks.registry.mlflow_runs import tracking
from tasks.registry.mlflow_runs.outbox import log_model, send_kept
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.candidate import account, locked_json
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities import Run

TRACKED = ("sft", "reward", "held_out_reward", "align", "evaluate")
TRAINED_WITH = ("git_commit", "git_dirty", "lock_file", "seed", "device")
PIPELINES_KEPT = 200  # a tag of MLflow holds 8000 characters

logger = logging.getLogger(__name__)


class Linked(NamedTuple):
    """The run behind a stage's outputs in dvc.lock."""

    stage: str
    status: str  # ran, reused (by another pipeline result before this one), restored (from files)
    run_id: str
    alarm: str | None  # same key, other bytes: the stage is not deterministic


def link_runs(store: Store) -> list[Linked]:
    """Find or write the run of every tracked stage in dvc.lock, and note there what it gave; repeatable without harm.

    Raises:
        InputError: a run must be written anew and DVC's cache lacks its metrics or curve.
    """
    send_kept(store)
    pipeline = _pipeline()
    linked = []
    for stage in TRACKED:
        ingredients = locked_ingredients(stage)
        if ingredients is not None:
            linked.append(_link(store, stage, ingredients, pipeline))
    return linked


def find_run(store: Store, key: str) -> "Run | None":
    """Find the finished run with a content key: the one that a result rests on already, or else the first."""
    found = _finished(store, key)
    return found[0] if found else None


def trained_account(store: Store, params: Params) -> dict[str, Any]:
    """Give the candidate's account, with the code and the device that the run of its training names.

    Raises:
        InputError: the pipeline has not run to its end, or its results do not belong together.
    """
    known = account(params)
    run = find_run(store, known["keys"]["align"])
    return known | {name: value for name, value in (run.data.tags if run else {}).items() if name in TRAINED_WITH}


def _finished(store: Store, key: str) -> "list[Run]":
    query = f"tags.key = '{key}' and attributes.status = 'FINISHED'"
    found = list(store.client.search_runs([store.experiment_id], query))
    return sorted(found, key=lambda run: ("used_by" not in run.data.tags, run.info.start_time, run.info.run_id))


def _pipeline() -> str:
    """Name the result in dvc.lock as a whole, by the keys of all its stages."""
    keys = json.dumps({stage: lock_key(stage) for stage in plan()})
    return hashlib.sha256(keys.encode()).hexdigest()[:16]


def _link(store: Store, stage: str, ingredients: Ingredients, pipeline: str) -> Linked:
    key, outputs = ingredients.key(), output_hashes(stage)
    tracking.end_abandoned(store, key)
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
    return Linked(stage, _status(store, run, pipeline), run_id, alarm)


def _drop_repeated(store: Store, kept: "Run", others: "list[Run]") -> None:
    """Delete what a stage left that was killed after its run had ended, and before DVC had taken its outputs.

    It ran again and wrote the same bytes. MLflow keeps what is deleted (`mlflow runs restore`). A run of another
    machine is somebody's own, and stays.
    """
    for run in others:
        host, its_host = (each.data.tags.get("process", "").rpartition(":")[0] for each in (kept, run))
        same = run.data.tags.get("status") == kept.data.tags.get("status")  # one that ran tells more than one restored
        if same and host and host == its_host:
            store.client.set_tag(run.info.run_id, "repeats", kept.info.run_id)
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
    """Tell the pipeline result that a run was made for from those that reused it, which its tag lists in order."""
    used_by: list[str] = json.loads(run.data.tags.get("used_by", "[]"))
    if pipeline not in used_by:
        used_by.append(pipeline)
        store.client.set_tag(run.info.run_id, "used_by", json.dumps(used_by[:PIPELINES_KEPT]))
    return "reused" if used_by[0] != pipeline else run.data.tags.get("status", "ran")


def _restore(store: Store, stage: str, ingredients: Ingredients, outputs: dict[str, str]) -> str:
    """Write a run from what DVC holds: metrics, curve, model."""
    name = next((folder.name for folder in _models(outputs)), stage)
    run = tracking.restored(store, name, ingredients)
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
