"""A stage's run in MLflow: parameters, metrics by step, system metrics, data sets, the model by reference.

    with tracking.run("sft", params, inputs=[VALIDATED / "demonstrations.jsonl"]) as run:
        run.log(step, {"loss": 1.2})
        run.model(MODELS / "sft")
        run.summary(metrics)

Tracking observes: nothing here changes a DVC output, and a server that hangs or goes away during training costs a
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
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.common.files import VALIDATED
from tasks.registry.dvc_outputs.stages import Ingredients, current_hash, current_ingredients
from tasks.registry.lineage.portable_names import in_outputs, this_machine
from tasks.registry.mlflow_runs.outbox import VALUES_PER_REQUEST, Message, Outbox, Status, keep
from tasks.registry.mlflow_runs.provenance import code_tags
from tasks.registry.mlflow_runs.store import Store, in_time, is_local, open_store
from tasks.settings.fingerprint import flatten
from tasks.settings.params import Params

PARAMETERS_PER_REQUEST, PARAMETER_LENGTH = 100, 6000  # MLflow's limits
UNNAMEABLE, NAME_LENGTH = re.compile(r"[^\w.\- ]"), 250  # what MLflow refuses in the name of a metric, and its limit
SECONDS_TO_RESTORE = 3600.0
# How long the end of a stage waits for a server that takes nothing; a database in the checkout is slow, but there.
PATIENCE_SECONDS, PATIENCE_WITH_A_FILE = 10.0, 60.0
SECONDS_TO_STOP = 4.0  # for an interrupted stage altogether

logger = logging.getLogger(__name__)


class Run:
    """A run in MLflow that is open for writing; what is told of it is sent by another thread."""

    def __init__(self, store: Store, run_id: str, stage: str, key: str | None) -> None:
        self.id = run_id
        self._store, self._stage, self._key = store, stage, key
        self._outbox = Outbox(store, run_id, stage)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a step; they are sent together with others, every two seconds or 200 rows."""
        now = int(time.time() * 1000)
        values = [[name, float(value), now, step] for name, value in metrics.items()]
        for first in range(0, len(values), VALUES_PER_REQUEST):
            self._outbox.put(Message("metrics", values[first : first + VALUES_PER_REQUEST]))

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
        self._outbox.put(Message("model", {"folder": folder.as_posix(), "md5": md5, "key": self._key}))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep rows to read in MLflow, such as samples; all have the fields of the first."""
        columns = {field: [row[field] for row in rows] for field in (rows[0] if rows else {})}
        self._outbox.put(Message("table", {"name": name, "columns": columns}))

    def inputs(self, paths: Sequence[Path]) -> None:
        """Note files that the stage reads, as data sets with their content hash."""
        found = []
        for path in paths:
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, "md5").hexdigest()  # what DVC calls the file
            source = json.dumps({"uri": path.as_posix()})
            found.append({"name": path.name, "digest": md5, "source_type": "local", "source": source})
        if found:
            self._outbox.put(Message("inputs", found))

    def close(self, status: Status) -> None:
        """Send what is waiting and end the run; what a server does not take in time is kept in a file.

        Raises:
            MlflowException: something told was wrong; the run has failed then.
        """
        patience, began = PATIENCE_WITH_A_FILE if is_local(self._store.uri) else PATIENCE_SECONDS, time.monotonic()
        most = min(SECONDS_TO_STOP, patience) if status == "KILLED" else None
        if self._outbox.flush(patience, most):
            self._end("FAILED" if self._outbox.fault else status)
            self._outbox.flush(patience, most and most - (time.monotonic() - began))
        else:
            self._end(status)
        if left := self._outbox.take_back():
            keep(self._store, self.id, left)
            logger.warning(
                "MLflow did not get all of the run of %s: run trueline sync when it is back, which sends the rest",
                self._stage,
            )
        if self._outbox.fault and status == "FINISHED":
            raise self._outbox.fault

    def _end(self, status: Status) -> None:
        self._outbox.put(Message("end", {"status": status, "end_time": int(time.time() * 1000)}))


class Restored(Run):
    """A run that is written anew from files: it is sent when it is closed, and whatever fails is raised."""

    def __init__(self, store: Store, run_id: str, stage: str, key: str | None) -> None:
        super().__init__(store, run_id, stage, key)
        self._outbox = Outbox(store, run_id, stage, by_thread=False)

    def close(self, status: Status) -> None:
        """Send everything and end the run.

        Raises:
            MlflowException: MLflow is away.
        """
        self._end(status)
        self._outbox.send_all()


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

    def inputs(self, paths: Sequence[Path]) -> None:
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
    ingredients = current_ingredients(stage)
    device = _device(params)
    tracked = in_time(store.uri, lambda: _begin(store, stage, params, ingredients, device))
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
    if key:
        end_abandoned(store, key)
    settings = ingredients.params if ingredients else _sections(stage, params)
    tags = {"status": "ran", "process": this_process(), "seed": str(params.seed), "device": device}
    tags |= {"hardware": hardware(device)} | code_tags() | data_tag(ingredients)
    return start(store, stage, key, settings, tags)


def restored(store: Store, stage: str, ingredients: Ingredients) -> Restored:
    """Open a run that is written anew from what DVC holds."""
    key, tags = ingredients.key(), {"status": "restored", "process": this_process()}
    run_id = _create(store, stage, key, ingredients.params, tags | code_tags() | data_tag(ingredients))
    return Restored(store, run_id, stage, key)


def start(store: Store, stage: str, key: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
    """Open a run in MLflow and note its parameters.

    Args:
        store: where.
        stage: the stage, which also names the run.
        key: its content key, where there is one.
        settings: nested parameters, noted as `section.name`.
        tags: what else is known of it.
    """
    return Run(store, _create(store, stage, key, settings, tags), stage, key)


def _create(store: Store, stage: str, key: str | None, settings: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    from mlflow.entities import Param

    identity = {"stage": stage} | ({"key": key} if key else {})
    created = store.client.create_run(store.experiment_id, run_name=stage, tags={**tags, **identity})
    values = [Param(name, _text(value)[:PARAMETER_LENGTH]) for name, value in flatten(in_outputs(settings)).items()]
    for first in range(0, len(values), PARAMETERS_PER_REQUEST):
        store.client.log_batch(created.info.run_id, params=values[first : first + PARAMETERS_PER_REQUEST])
    return str(created.info.run_id)


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
    return f"{this_machine()}:{os.getpid()}"


def _is_gone(process: str, began: float) -> bool:
    """Tell of a process of this machine whether it has ended since; its number may be another's by now."""
    import psutil

    host, _, number = process.rpartition(":")
    if host not in (this_machine(), platform.node()) or not number.isdecimal():
        return False
    try:
        return psutil.Process(int(number)).create_time() > began + 1
    except psutil.NoSuchProcess:
        return True


@contextmanager
def _system_metrics(store: Store, tracked: Run, device: str) -> Iterator[None]:
    from tasks.registry.mlflow_runs.system_metrics import Meter, Monitor

    monitor: Any = Monitor(store.uri, tracked.id, tracked.log)
    monitor.monitors.append(Meter(device))
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        # A stage shorter than the sampling interval would otherwise leave none.
        monitor.collect_metrics()
        monitor.publish_metrics(monitor.aggregate_metrics())


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
