"""Figures of a checkout for Prometheus: its last run, its queue, its champion, its disks.

They are read from files, the registry and the Prefect server; no run is kept waiting or refused by it. A figure that
cannot be read is left out and counted in trueline_metrics_errors.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from flows.checks.surroundings import free_bytes
from flows.inspection.status import registry
from flows.prefect_server.address import credentials, named_server
from flows.prefect_server.deployments import PIPELINE
from flows.processes.locks import running_flow
from flows.sharing.publish import is_published
from flows.stages.last_run import OUTCOMES, VERDICTS, last_run
from tasks.common.errors import InputError
from tasks.common.files import replacing
from tasks.common.progress import STATUS_FILES, running
from tasks.common.safe_text import without_secrets
from tasks.registry.dvc_outputs.graph import places
from tasks.registry.promotion.decisions import MOVES, decisions_of
from tasks.registry.promotion.versions import CHALLENGER, CHAMPION
from tasks.settings.params import load_params
from tasks.stage import classify

# Of runs at the Prefect server. Scheduled: at a time to come; the others but Running wait now.
QUEUE_STATES = ("Scheduled", "Late", "AwaitingConcurrencySlot", "Pending", "Running")
ANSWER_SECONDS = 5.0
HELP = {
    "trueline_run_active": "1 while a run is under way in the checkout.",
    "trueline_run_active_start_timestamp_seconds": "When the run that is under way began.",
    "trueline_run_last_start_timestamp_seconds": "When the last run that has ended began.",
    "trueline_run_last_end_timestamp_seconds": "When the last run ended; absent where it was killed.",
    "trueline_run_last_success_timestamp_seconds": "When the last run that succeeded ended.",
    "trueline_run_last_outcome": "1 for the outcome of the last run, else 0.",
    "trueline_run_last_verdict": "1 for the verdict of the last run, else 0; all 0 where it came to none.",
    "trueline_stage_seconds": "Seconds that a stage took in the last run; 0 where it was reused.",
    "trueline_stage_progress_timestamp_seconds": "When a stage that runs now last reported progress.",
    "trueline_queue_runs": "Runs at the Prefect server by state.",
    "trueline_champion_version": "The champion's version.",
    "trueline_champion_promoted_timestamp_seconds": "When the champion was promoted, or rolled back to.",
    "trueline_challenger_version": "The version that was registered last and is not promoted.",
    "trueline_versions_awaiting_approval": "Versions that wait for a person.",
    "trueline_record_published": "1 where git has pushed the record, else 0; absent without registry.publish.",
    "trueline_disk_free_bytes": "Bytes that may still be written to the disk of a place.",
    "trueline_metrics_errors": "1 for a source whose figures could not be read, else 0.",
    "trueline_metrics_timestamp_seconds": "When these figures were read.",
}


class Figure(NamedTuple):
    """A value of a metric with its labels."""

    metric: str  # in HELP
    value: float
    labels: Mapping[str, str] = {}


class Reading(NamedTuple):
    """What could be read, and a sentence for each source that could not."""

    figures: list[Figure]
    errors: dict[str, str]


def read() -> Reading:
    """Read all figures now."""
    figures: list[Figure] = []
    errors: dict[str, str] = {}
    for source, figures_of in SOURCES.items():
        try:
            for figure in figures_of():  # those before a fault stay
                figures.append(figure)
        except Exception as error:  # whatever it is, the other figures are worth having
            errors[source] = classify(error)[1]
    figures += [Figure("trueline_metrics_errors", source in errors, {"source": source}) for source in SOURCES]
    figures.append(Figure("trueline_metrics_timestamp_seconds", time.time()))
    return Reading(figures, errors)


def families(figures: list[Figure]) -> list[GaugeMetricFamily]:
    """Gather figures by metric, as prometheus_client takes them."""
    found: dict[str, GaugeMetricFamily] = {}
    for metric, value, labels in figures:
        family = found.setdefault(metric, GaugeMetricFamily(metric, HELP[metric], labels=list(labels)))
        family.add_metric(list(labels.values()), value)
    return list(found.values())


class Collected:
    """The last reading, as a collector of prometheus_client: a scrape never waits for a server."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the metrics of the last reading."""
        yield from families(self.reading.figures)


def exposition(reading: Reading) -> str:
    """Write a reading in Prometheus' text format."""
    collected = CollectorRegistry(auto_describe=False)
    collected.register(Collected(reading))
    return generate_latest(collected).decode()


def write(reading: Reading, file: Path) -> None:
    """Write a reading into a file that node_exporter's textfile collector reads, whole or not at all.

    Raises:
        InputError: the name does not end in .prom, which the collector asks for.
    """
    if file.suffix != ".prom":
        raise InputError(f"{file} does not end in .prom, and node_exporter reads no other: name another file")
    with replacing(file) as draft:
        draft.write_text(exposition(reading), encoding="utf-8")


def _of_runs() -> Iterator[Figure]:
    active = running_flow()
    yield Figure("trueline_run_active", active is not None)
    if active and active.pid:  # 0: it has not written its name yet
        yield Figure("trueline_run_active_start_timestamp_seconds", _seconds(active.since))
    run = last_run()
    if run is None:
        return
    yield Figure("trueline_run_last_start_timestamp_seconds", _seconds(run.started))
    if run.ended:
        yield Figure("trueline_run_last_end_timestamp_seconds", _seconds(run.ended))
    if run.last_success:
        yield Figure("trueline_run_last_success_timestamp_seconds", _seconds(run.last_success))
    for outcome in OUTCOMES:
        yield Figure("trueline_run_last_outcome", run.outcome == outcome, {"outcome": outcome})
    for verdict in VERDICTS:
        yield Figure("trueline_run_last_verdict", run.verdict == verdict, {"verdict": verdict})
    for stage, came in run.stages.items():
        yield Figure("trueline_stage_seconds", came["seconds"], {"stage": stage})


def _of_progress() -> Iterator[Figure]:
    for stage in running():
        try:
            written = (STATUS_FILES / f"{stage.stage}.json").stat().st_mtime
        except FileNotFoundError:  # it has ended in this moment
            continue
        yield Figure("trueline_stage_progress_timestamp_seconds", written, {"stage": stage.stage})


def _of_queue() -> Iterator[Figure]:
    url = named_server()
    if url is None:
        return
    try:
        with httpx.Client(timeout=ANSWER_SECONDS, headers=credentials()) as client:
            for state in QUEUE_STATES:
                asked = {"flows": {"name": {"any_": [PIPELINE]}}, "flow_runs": {"state": {"name": {"any_": [state]}}}}
                answer = client.post(f"{url}/flow_runs/count", json=asked).raise_for_status()
                yield Figure("trueline_queue_runs", answer.json(), {"state": state})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
        raise InputError(f"the Prefect server at {without_secrets(url)} gives no count of runs ({what})") from None


def _of_registry() -> Iterator[Figure]:
    params = load_params()
    found = registry(params)
    if found["error"]:
        raise InputError(found["error"])
    yield Figure("trueline_versions_awaiting_approval", len(found["awaiting"]))
    if found[CHALLENGER] is not None:
        yield Figure("trueline_challenger_version", found[CHALLENGER])
    champion = found[CHAMPION]
    if champion is None:
        return
    yield Figure("trueline_champion_version", champion)
    moves = [each for each in decisions_of(params.registry.policy) if each["action"] in MOVES]
    if not moves or moves[-1]["policy"]["version"] != champion:
        raise InputError(f"decisions.jsonl does not have the promotion of champion {champion}: pull it")
    yield Figure("trueline_champion_promoted_timestamp_seconds", _seconds(moves[-1]["time"]))


def _of_publishing() -> Iterator[Figure]:
    if load_params().registry.publish:
        yield Figure("trueline_record_published", is_published())


def _of_disks() -> Iterator[Figure]:
    for place, folder in {"checkout": Path.cwd(), "cache": places().cache}.items():
        yield Figure("trueline_disk_free_bytes", free_bytes(folder), {"place": place})


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


SOURCES: dict[str, Callable[[], Iterator[Figure]]] = {
    "runs": _of_runs,
    "progress": _of_progress,
    "queue": _of_queue,
    "registry": _of_registry,
    "publishing": _of_publishing,
    "disks": _of_disks,
}
