"""The figures of versions that were served, in MLflow: a run for each version and each start of a server.

Run and version name each other, by tags.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.registry.lineage.redaction import machine_id
from tasks.registry.mlflow_runs.store import Store, open_store, with_timeout
from tasks.registry.serving.versions import ServedVersion
from tasks.settings.params import Params

RUN_NAME, KIND = "serve", "serving"
MD5_TAG, ROLE_TAG, RUNS_TAG = "served_md5", "served_as", "serving_runs"
MOST_RUNS = 20  # of one version that are reported, the newest


class ServingRun:
    """The run of a version that a server serves."""

    def __init__(self, params: Params, version: ServedVersion, role: str) -> None:
        """Make nothing yet.

        Args:
            params: all settings.
            version: which one.
            role: the alias that leads to it, and its share of the requests.
        """
        self._params, self._version, self._role = params, version, role
        self._run_id: str | None = None
        self._step = 0

    def write(self, figures: Mapping[str, float], *, is_end: bool = False) -> None:
        """Log the figures so far; the run is made when it is needed first, and ended with the last of them.

        Raises:
            InputError: MLflow cannot be reached; MlflowException, OSError: it fails.
        """
        store = open_store(self._params.registry.experiment)
        with_timeout(store.uri, lambda: self._write(store, figures, is_end))

    def _write(self, store: Store, figures: Mapping[str, float], is_end: bool) -> None:
        from mlflow.entities import Metric

        client, now = store.client, int(time.time() * 1000)
        if self._run_id is None:
            self._run_id = self._create(store)
        self._step += 1
        client.log_batch(
            self._run_id,
            metrics=[Metric(f"{KIND}/{name}", float(value), now, self._step) for name, value in figures.items()],
        )
        if is_end:
            client.set_terminated(self._run_id, "FINISHED")

    def _create(self, store: Store) -> str:
        version = self._version
        tags = {
            "kind": KIND,
            MD5_TAG: version.md5,
            ROLE_TAG: self._role,
            "version": str(version.version),
            "machine": machine_id(),
        }
        run_id = str(store.client.create_run(store.experiment_id, run_name=RUN_NAME, tags=tags).info.run_id)
        number = str(version.version)
        before = store.client.get_model_version(version.policy, number).tags.get(RUNS_TAG, "[]")
        runs = [*json.loads(before), run_id][-MOST_RUNS:]
        store.client.set_model_version_tag(version.policy, number, RUNS_TAG, json.dumps(runs))
        return run_id


class Served(NamedTuple):
    """What a version did while a server served it."""

    version: str
    role: str
    began: str  # UTC
    figures: dict[str, float]
    run_id: str


def served(store: Store, md5s: Mapping[str, str]) -> list[Served]:
    """List what versions did where they were served, the newest last.

    Args:
        store: the MLflow store.
        md5s: the content hashes of the versions, by what to call each.
    """
    return [found for name, md5 in md5s.items() for found in _served(store, name, md5)]


def _served(store: Store, name: str, md5: str) -> list[Served]:
    runs = store.client.search_runs(
        [store.experiment_id],
        f"tags.kind = '{KIND}' and tags.{MD5_TAG} = '{md5}'",
        max_results=MOST_RUNS,
        order_by=["attributes.start_time DESC"],
    )
    return [_of_run(name, run) for run in reversed(runs)]


def _of_run(name: str, run: Any) -> Served:  # noqa: ANN401 (MLflow's)
    began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.info.start_time / 1000))
    prefix = f"{KIND}/"
    figures = {key.removeprefix(prefix): value for key, value in run.data.metrics.items() if key.startswith(prefix)}
    return Served(name, run.data.tags.get(ROLE_TAG, ""), began, figures, run.info.run_id)
