"""A stage's run in MLflow: parameters, metrics by step, system metrics, data sets, the model by reference.

    with tracking.run("sft", params, inputs=[VALIDATED / "demonstrations.jsonl"]) as run:
        run.log(step, {"loss": 1.2})
        run.model(MODELS / "sft")
        run.summary(metrics)

Tracking observes: nothing here changes a DVC output, and a server that goes away during training costs a warning.
"""

import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.data.files import VALIDATED
from tasks.data.origin import flatten
from tasks.params import Params
from tasks.registry.provenance import code_tags
from tasks.registry.stages import Ingredients, current_hash, current_ingredients
from tasks.registry.store import Store, is_passing, open_store

if TYPE_CHECKING:
    from mlflow.entities import Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]
SEND_EVERY_SECONDS, SEND_EVERY_ROWS = 2.0, 200
VALUES_PER_REQUEST = 1000  # MLflow's limit
PARAMETERS_PER_REQUEST, PARAMETER_LENGTH = 100, 6000  # MLflow's limits
UNNAMEABLE, NAME_LENGTH = re.compile(r"[^\w.\- ]"), 250  # what MLflow refuses in the name of a metric, and its limit
SECONDS_TO_RESTORE = 3600.0
RETRY_AFTER_SECONDS = 60.0  # a server that has gone away must not slow training down

logger = logging.getLogger(__name__)


class Run:
    """A run in MLflow that is open for writing."""

    def __init__(self, store: Store, run_id: str, stage: str, key: str | None) -> None:
        self.id = run_id
        self._store, self._stage, self._key = store, stage, key
        self._waiting: list[Metric] = []
        self._rows_waiting = 0
        self._last_sent = time.monotonic()
        self._lost_connection = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a step; they are sent together with others, every two seconds or 200 rows."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._rows_waiting += 1
        waited = time.monotonic() - self._last_sent
        if self._lost_connection:
            due = waited >= RETRY_AFTER_SECONDS
        else:
            due = waited >= SEND_EVERY_SECONDS or self._rows_waiting >= SEND_EVERY_ROWS
        if due:
            self._send()

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Note a stage's final figures: every number in a nested mapping, as `final/outer.inner`.

        What MLflow takes for no part of a name, such as the slash in a category of prompts or in a source, becomes `_`.
        """
        named: dict[str, float] = {}
        for path, value in flatten(metrics).items():
            if isinstance(value, int | float):
                named[_metric_name(path, named)] = value
        self.log(0, named)

    def model(self, folder: Path, md5: str | None = None) -> None:
        """Note the model in `folder` as this run's, by reference: the weights stay where DVC keeps them.

        Args:
            folder: the model's folder, an output of the stage.
            md5: its DVC hash where it is known; else it is computed, outside a DVC repository left out.
        """
        md5 = md5 or current_hash(self._stage, folder)
        with self._forgiving():
            model_id = log_model(self._store, folder, md5, self._key, self.id)
            self._store.client.set_tag(self.id, "model_id", model_id)
            if md5:
                self._store.client.set_tag(self.id, "outputs", json.dumps({folder.as_posix(): md5}))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows to read in MLflow, such as samples; all have the fields of the first."""
        columns = {field: [row[field] for row in rows] for field in (rows[0] if rows else {})}
        with self._forgiving():
            self._store.client.log_table(self.id, columns, f"{name}.json")

    def close(self, status: Status) -> None:
        """Send what is waiting and end the run."""
        self._send()
        with self._forgiving():
            self._store.client.set_terminated(self.id, status)
        if self._lost_connection:
            logger.warning("MLflow did not get all of the run of %s: run trueline sync when it is back", self._stage)

    def _send(self) -> None:
        with self._forgiving():
            while self._waiting:
                self._store.client.log_batch(self.id, metrics=self._waiting[:VALUES_PER_REQUEST])
                del self._waiting[:VALUES_PER_REQUEST]
            self._lost_connection = False
        self._rows_waiting, self._last_sent = 0, time.monotonic()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Let training go on when the server has gone away; metrics wait for its return."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if not is_passing(error):
                raise
            if not self._lost_connection:
                logger.warning("MLflow does not answer; %s goes on, its metrics wait", self._stage)
            self._lost_connection = True


class Unnoted(Run):
    """Stands for a run that another process notes."""

    def __init__(self) -> None:
        """Have nothing to note it in."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Leave it to the other."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Leave it to the other."""

    def model(self, folder: Path, md5: str | None = None) -> None:
        """Leave it to the other."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Leave it to the other."""


@contextmanager
def run(stage: str, params: Params, inputs: Sequence[Path] = ()) -> Iterator[Run]:
    """Track a stage while the block runs.

    The run ends as FINISHED, as FAILED on an error, as KILLED on SIGTERM or Ctrl-C.

    Args:
        stage: the stage as its module is called (`dpo` and `ppo`, not `align`).
        params: all settings; those that dvc.yaml names for the stage are noted.
        inputs: files the stage reads, noted as data sets with their content hash.

    Raises:
        InputError: MLflow cannot be reached.
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes that train together the first one tells
        yield Unnoted()
        return
    store = open_store(params.registry.experiment)
    from tasks.registry.meters import hardware

    ingredients = current_ingredients(stage)
    key = ingredients.key() if ingredients else None
    if key:
        end_abandoned(store, key)
    settings = ingredients.params if ingredients else _sections(stage, params)
    device = _device(params)
    tags = {"status": "ran", "process": this_process(), "seed": str(params.seed), "device": device}
    tags |= {"hardware": hardware(device)} | code_tags() | data_tag(ingredients)
    tracked = start(store, stage, key, settings, tags)
    _note_inputs(store, tracked.id, inputs)
    status: Status = "FAILED"
    try:
        with _system_metrics(store, tracked.id, device):
            yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracked.close(status)


def start(store: Store, stage: str, key: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
    """Open a run in MLflow and note its parameters.

    Args:
        store: where.
        stage: the stage, which also names the run.
        key: its content key, where there is one.
        settings: nested parameters, noted as `section.name`.
        tags: what else is known of it.
    """
    from mlflow.entities import Param

    identity = {"stage": stage} | ({"key": key} if key else {})
    created = store.client.create_run(store.experiment_id, run_name=stage, tags={**tags, **identity})
    values = [Param(name, _text(value)[:PARAMETER_LENGTH]) for name, value in flatten(settings).items()]
    for first in range(0, len(values), PARAMETERS_PER_REQUEST):
        store.client.log_batch(created.info.run_id, params=values[first : first + PARAMETERS_PER_REQUEST])
    return Run(store, created.info.run_id, stage, key)


def log_model(store: Store, folder: Path, md5: str | None, key: str | None, run_id: str | None = None) -> str:
    """Make a logged model that points at what DVC holds, as the output of a run where there is one; give its id."""
    from mlflow.entities import LoggedModelOutput

    known = {"mlflow.model.isExternal": "true", "path": folder.as_posix(), "key": key, "md5": md5}
    tags = {name: value for name, value in known.items() if value}
    model = store.client.create_logged_model(store.experiment_id, name=folder.name, source_run_id=run_id, tags=tags)
    store.client.finalize_logged_model(model.model_id, "READY")
    if run_id:
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def end_abandoned(store: Store, key: str) -> None:
    """End as KILLED the runs with this key whose process is gone: SIGKILL leaves them RUNNING.

    Of a process on another machine nobody here knows. But to write a run anew takes seconds: one that took an hour was
    given up, in a container perhaps that has another name by now.
    """
    query = f"tags.key = '{key}' and attributes.status = 'RUNNING'"
    for found in store.client.search_runs([store.experiment_id], query):
        began = found.info.start_time / 1000
        process = found.data.tags.get("process", "")
        was_given_up = process == this_process() or time.time() - began > SECONDS_TO_RESTORE
        if _is_gone(process, began) or (found.data.tags.get("status") == "restored" and was_given_up):
            store.client.set_terminated(found.info.run_id, "KILLED")


def data_tag(ingredients: Ingredients | None) -> dict[str, str]:
    """Give the hash of the checked data as a tag, where the stage reads them."""
    data = ingredients.dependencies.get(VALIDATED.as_posix()) if ingredients else None
    return {"data": data} if data else {}


def this_process() -> str:
    """Name this process among those of all machines, as long as it lives."""
    return f"{platform.node()}:{os.getpid()}"


def _is_gone(process: str, began: float) -> bool:
    """Tell of a process of this machine whether it has ended since; its number may be another's by now."""
    import psutil

    host, _, number = process.rpartition(":")
    if host != platform.node() or not number.isdecimal():
        return False
    try:
        return psutil.Process(int(number)).create_time() > began + 1
    except psutil.NoSuchProcess:
        return True


@contextmanager
def _system_metrics(store: Store, run_id: str, device: str) -> Iterator[None]:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from tasks.registry.meters import Meter

    monitor = SystemMetricsMonitor(run_id, tracking_uri=store.uri)
    monitor.monitors.append(Meter(device))
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        # A stage shorter than the sampling interval would otherwise leave none.
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()


def _note_inputs(store: Store, run_id: str, inputs: Sequence[Path]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = []
    for path in inputs:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()  # what DVC calls the file
        source = json.dumps({"uri": path.as_posix()})
        dataset = Dataset(path.name, md5, source_type="local", source=source)
        datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]))
    if datasets:
        store.client.log_inputs(run_id, datasets)


def _sections(stage: str, params: Params) -> dict[str, Any]:
    """Choose a stage's settings where there is no dvc.yaml to name them."""
    names = ("seed", "runtime", "lora", stage)
    return {name: value for name, value in params.model_dump(by_alias=True).items() if name in names}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metric_name(path: str, taken: Container[str]) -> str:
    """Name a final figure as MLflow allows it; where that is too long or another's name, a hash tells it apart."""
    name = f"final/{UNNAMEABLE.sub('_', path)}"
    if len(name) <= NAME_LENGTH and name not in taken:
        return name
    mark = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - len(mark) - 1]} {mark}"


def _device(params: Params) -> str:
    torch = sys.modules.get("torch")  # stages that compute have loaded it; no other should pay for it
    if params.runtime.device != "auto" or torch is None:
        return params.runtime.device
    return "cuda" if torch.cuda.is_available() else "cpu"
