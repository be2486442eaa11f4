"""The resource usage of each tracked stage: time, tokens, memory and energy of the MLflow run that made its outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.registry.mlflow_runs.linked_runs import LinkedRun
from tasks.registry.mlflow_runs.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run


class ResourceUsage(NamedTuple):
    """The resource usage of the run behind a stage's outputs; None is what was not recorded."""

    stage: str  # as its module is called: ppo, not align
    status: str  # ran, reused (for this result, by an earlier one), restored (written from files: nothing was measured)
    run_id: str
    unfinished: int  # earlier runs on the same input that failed or were killed; their usage is not counted
    seconds: float | None
    tokens: float | None  # of the answers in the training rows, counted once; with PPO of the sampled answers
    device: str | None
    hardware: str | None
    memory: float | None  # peak of the process, megabytes
    gpu_memory: float | None  # peak of the process, megabytes
    processor_energy: float | None  # joules
    gpu_energy: float | None  # joules


def resource_usages(store: Store, linked: Sequence[LinkedRun]) -> list[ResourceUsage]:
    """Read the resource usage of a result's stages from MLflow, in the order of the stages."""
    return [_usage(store, stage) for stage in linked]


def _usage(store: Store, linked: LinkedRun) -> ResourceUsage:
    run = store.client.get_run(linked.run_id)
    tags, figures = run.data.tags, run.data.metrics
    was_restored = tags.get("status") == "restored"
    return ResourceUsage(
        stage=tags["stage"],
        status="restored" if was_restored else linked.status,
        run_id=linked.run_id,
        unfinished=_unfinished(store, run),
        seconds=None if was_restored else (run.info.end_time - run.info.start_time) / 1000,
        tokens=figures.get("final/tokens"),
        device=tags.get("device"),
        hardware=tags.get("hardware"),
        memory=figures.get("system/peak_memory_megabytes"),
        gpu_memory=figures.get("system/gpu_peak_memory_megabytes"),
        processor_energy=figures.get("system/processor_energy_joules"),
        gpu_energy=figures.get("system/gpu_energy_joules"),
    )


def _unfinished(store: Store, run: "Run") -> int:
    query = f"tags.key = '{run.data.tags['key']}' and attributes.start_time < {run.info.start_time}"
    found = store.client.search_runs([store.experiment_id], query)
    return sum(each.info.status in ("FAILED", "KILLED") for each in found)
