"""A stage's run in MLflow: parameters, metrics by step, system metrics, data sets, the model by reference.

    with tracking.run("sft", params, inputs=[VALIDATED / "demonstrations.jsonl"]) as run:
        run.log(step, {"loss": 1.2})
        run.model(MODELS / "sft")
        run.summary(metrics)

Tracking only observes: nothing here changes a DVC output, and a server that hangs or fails during training causes a
warning.
"""

import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.common.files import VALIDATED
from tasks.registry.dvc_outputs.stages import Ingredients, current_hash, current_ingredients
from tasks.registry.lineage.redaction import machine_id, redact
from tasks.registry.mlflow_runs.provenance import code_tags
from tasks.registry.mlflow_runs.send_queue import VALUES_PER_REQUEST, Message, SendQueue, Status, save_unsent
from tasks.registry.mlflow_runs.store import Store, is_local, open_store, with_timeout
from tasks.settings.fingerprint import flatten
from tasks.settings.params import Params

PARAMETERS_PER_REQUEST, PARAMETER_LENGTH = 100, 6000  # MLflow's limits
REFUSED_CHARACTERS, NAME_LENGTH = re.compile(r"[^\w.\- ]"), 250  # of metric names, by MLflow
SECONDS_TO_RESTORE = 3600.0
FLOW_RUN = "TRUELINE_FLOW_RUN"  # variable with the id of the flow run that started this process
# How long the end of a stage waits for a server that takes nothing; a database in the checkout may be slow.
PATIENCE_SECONDS, PATIENCE_WITH_A_FILE = 10.0, 60.0
SECONDS_TO_STOP = 4.0  # for an interrupted stage, in all

logger = logging.getLogger(__name__)


class Run:
    """An open run in MLflow; another thread sends what is logged."""

    def __init__(self, store: Store, run_id: str, stage: str, key: str | None) -> None:
        self.id = run_id
        self._store, self._stage, self._key = store, stage, key
        self._queue = SendQueue(store, run_id, stage)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step; they are sent in batches, every two seconds or 200 rows."""
        now = int(time.time() * 1000)
        values = [[name, float(value), now, step] for name, value in metrics.items()]
        for first in range(0, len(values), VALUES_PER_REQUEST):
            self._queue.put(Message("metrics", values[first : first + VALUES_PER_REQUEST]))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Log a stage's final metrics: every number in a nested mapping, as `final/outer.inner`.

        Characters that MLflow refuses, such as the slash in a category of prompts or a source, become `_`.
        """
        named: dict[str, float] = {}
        for path, value in flatten(metrics).items():
            if isinstance(value, int | float):
                named[_metric_name(path, named)] = value
        self.log(0, named)

    def model(self, folder: Path, md5: str | None = None) -> None:
        """Log the model in `folder` as this run's, by reference: the weights stay in DVC.

        Args:
            folder: the model's folder, an output of the stage.
            md5: its DVC hash if known; else it is computed, or left out outside a DVC repository.
        """
        md5 = md5 or current_hash(self._stage, folder)
        self._queue.put(Message("model", {"folder": folder.as_posix(), "md5": md5, "key": self._key}))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as a table, such as samples; all have the fields of the first."""
        columns = {field: [row[field] for row in rows] for field in (rows[0] if rows else {})}
        self._queue.put(Message("table", {"name": name, "columns": columns}))

    def inputs(self, paths: Sequence[Path]) -> None:
        """Log files that the stage reads, as data sets with their content hash."""
        found = []
        for path in paths:
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, "md5").hexdigest()  # DVC's hash of the file
            source = json.dumps({"uri": path.as_posix()})
            found.append({"name": path.name, "digest": md5, "source_type": "local", "source": source})
        if found:
            self._queue.put(Message("inputs", found))

    def close(self, status: Status) -> None:
        """Send what is waiting and end the run; what the server does not take in time is saved in a file.

        Raises:
            MlflowException: MLflow refused a message; the run has failed then.
        """
        patience, began = PATIENCE_WITH_A_FILE if is_local(self._store.uri) else PATIENCE_SECONDS, time.monotonic()
        longest = min(SECONDS_TO_STOP, patience) if status == "KILLED" else None
        if self._queue.flush(patience, longest):
            self._end("FAILED" if self._queue.fault else status)
            self._queue.flush(patience, longest and longest - (time.monotonic() - began))
        else:
            self._end(status)
        if left := self._queue.drain():
            save_unsent(self._store, self.id, left)
            logger.warning(
                "MLflow did not receive the whole run of %s: run trueline sync when it is back, to send the rest",
                self._stage,
            )
        if self._queue.fault and status == "FINISHED":
            raise self._queue.fault

    def _end(self, status: Status) -> None:
        self._queue.put(Message("end", {"status": status, "end_time": int(time.time() * 1000)}))


class RestoredRun(Run):
    """A run that is restored from files: it is sent when it is closed, and every failure is raised."""

    def __init__(self, store: Store, run_id: str, stage: str, key: str | None) -> None:
        super().__init__(store, run_id, stage, key)
        self._queue = SendQueue(store, run_id, stage, by_thread=False)

    def close(self, status: Status) -> None:
        """Send everything and end the run.

        Raises:
            MlflowException: MLflow cannot be reached.
        """
        self._end(status)
        self._queue.send_all()


class UntrackedRun(Run):
    """Takes the place of a run that another process logs."""

    def __init__(self) -> None:
        """Connect to nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def model(self, folder: Path, md5: str | None = None) -> None:
        """Do nothing."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def inputs(self, paths: Sequence[Path]) -> None:
        """Do nothing."""


@contextmanager
def run(stage: str, params: Params, inputs: Sequence[Path] = ()) -> Iterator[Run]:
    """Track a stage while the block runs.

    The run ends as FINISHED, as FAILED on an error, as KILLED on SIGTERM or Ctrl-C.

    Args:
        stage: the name of the stage's module (`dpo` or `ppo`, not `align`).
        params: all settings; those that dvc.yaml names for the stage are logged.
        inputs: files the stage reads, logged as data sets with their content hash.

    Raises:
        InputError: MLflow cannot be reached.
    """
    if os.environ.get("RANK", "0") != "0":  # of several training processes only rank 0 logs
        yield UntrackedRun()
        return
    store = open_store(params.registry.experiment)
    ingredients = current_ingredients(stage)
    device = _device(params)
    tracked = with_timeout(store.uri, lambda: _begin(store, stage, params, ingredients, device))
    status: Status = "FAILED"
    try:
        tracked.inputs(inputs)
        with _system_metrics(store, tracked, device):
            yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracked.close(status)


def _begin(store: Store, stage: str, params: Params, ingredients: Ingredients | None, device: str) -> Run:
    from tasks.registry.mlflow_runs.system_metrics import hardware

    key = ingredients.key() if ingredients else None
    end_abandoned(store)
    settings = ingredients.params if ingredients else _sections(stage, params)
    tags = {"status": "ran", "process": this_process(), "seed": str(params.seed), "device": device}
    tags |= {"hardware": hardware(device)} | code_tags() | data_tag(ingredients)
    tags |= {"flow_run": flow_run} if (flow_run := os.environ.get(FLOW_RUN)) else {}
    return start(store, stage, key, settings, tags)


def restored_run(store: Store, stage: str, ingredients: Ingredients) -> RestoredRun:
    """Open a run to restore from what DVC has."""
    key, tags = ingredients.key(), {"status": "restored", "process": this_process()}
    run_id = _create(store, stage, key, ingredients.params, tags | code_tags() | data_tag(ingredients))
    return RestoredRun(store, run_id, stage, key)


def start(store: Store, stage: str, key: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
    """Open a run in MLflow and log its parameters.

    Args:
        store: the MLflow store.
        stage: the stage, which also names the run.
        key: its content key, if there is one.
        settings: nested parameters, logged as `section.name`.
        tags: further tags.
    """
    return Run(store, _create(store, stage, key, settings, tags), stage, key)


def _create(store: Store, stage: str, key: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    from mlflow.entities import Param

    identity = {"stage": stage} | ({"key": key} if key else {})
    created = store.client.create_run(store.experiment_id, run_name=stage, tags={**tags, **identity})
    values = [Param(name, _text(value)[:PARAMETER_LENGTH]) for name, value in flatten(redact(settings)).items()]
    for first in range(0, len(values), PARAMETERS_PER_REQUEST):
        store.client.log_batch(created.info.run_id, params=values[first : first + PARAMETERS_PER_REQUEST])
    return str(created.info.run_id)


def end_abandoned(store: Store, flow_has_ended: Callable[[str], bool] = lambda _flow_run: False) -> None:
    """End as KILLED the runs whose process has ended: SIGKILL leaves them RUNNING.

    Processes on other machines cannot be checked, but the flow that started them can. And restoring a run takes
    seconds: after an hour it was abandoned, perhaps in a container that has another host name now.

    Args:
        store: the MLflow store.
        flow_has_ended: tells of the flow run that a run's tag names whether it has ended.
    """
    for found in store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'"):
        began = found.info.start_time / 1000
        process = found.data.tags.get("process", "")
        was_abandoned = process == this_process() or time.time() - began > SECONDS_TO_RESTORE
        flow_run = found.data.tags.get("flow_run")
        if (
            _has_ended(process, began)
            or (found.data.tags.get("status") == "restored" and was_abandoned)
            or (flow_run and flow_has_ended(flow_run))
        ):
            store.client.set_terminated(found.info.run_id, "KILLED")


def data_tag(ingredients: Ingredients | None) -> dict[str, str]:
    """Return the hash of the validated data as a tag, if the stage reads them."""
    data = ingredients.dependencies.get(VALIDATED.as_posix()) if ingredients else None
    return {"data": data} if data else {}


def this_process() -> str:
    """Return a name for this process, unique among all machines while it runs."""
    return f"{machine_id()}:{os.getpid()}"


def _has_ended(process: str, began: float) -> bool:
    """Return whether a process of this machine has ended since; its number may have been reused."""
    import psutil

    host, _, number = process.rpartition(":")
    if host not in (machine_id(), platform.node()) or not number.isdecimal():
        return False
    try:
        return psutil.Process(int(number)).create_time() > began + 1
    except psutil.NoSuchProcess:
        return True


@contextmanager
def _system_metrics(store: Store, tracked: Run, device: str) -> Iterator[None]:
    from tasks.registry.mlflow_runs.system_metrics import EnergyAndMemory, Monitor

    monitor: Any = Monitor(store.uri, tracked.id, tracked.log)
    monitor.monitors.append(EnergyAndMemory(device))
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        # A stage shorter than the sampling interval would otherwise leave none.
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())


def _sections(stage: str, params: Params) -> dict[str, Any]:
    """Choose a stage's settings without a dvc.yaml that names them."""
    names = ("seed", "runtime", "lora", stage)
    return {name: value for name, value in params.model_dump(by_alias=True).items() if name in names}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metric_name(path: str, taken: Container[str]) -> str:
    """Return a metric name that MLflow accepts; a hash makes it unique if it is too long or taken."""
    name = f"final/{REFUSED_CHARACTERS.sub('_', path)}"
    if len(name) <= NAME_LENGTH and name not in taken:
        return name
    mark = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"{name[: NAME_LENGTH - len(mark) - 1]} {mark}"


def _device(params: Params) -> str:
    torch = sys.modules.get("torch")  # stages that compute have imported it; importing it here would be slow
    if params.runtime.device != "auto" or torch is None:
        return params.runtime.device
    return "cuda" if torch.cuda.is_available() else "cpu"
