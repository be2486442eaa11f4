"""What the outputs of each tracked stage cost, as the run in MLflow that made them tells."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.registry.mlflow_runs.lookup import Linked
from tasks.registry.mlflow_runs.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run


class Cost(NamedTuple):
    """What the run behind a stage's outputs took; None is what it does not tell."""

    stage: str  # as its module is called: ppo, not align
    status: str  # ran, reused (for this result, by an earlier one), restored (written from files: nothing was measured)
    run_id: str
    unfinished: int  # runs on the same input that were ended before it; what they took is not counted
    seconds: float | None
    tokens: float | None  # of the answers that were learned from, once; with PPO of those that were sampled
    device: str | None
    hardware: str | None
    memory: float | None  # at most, in megabytes, of its process
    gpu_memory: float | None  # at most, in megabytes, of its process
    processor_energy: float | None  # joules
    gpu_energy: float | None  # joules


def costs(store: Store, linked: Sequence[Linked]) -> list[Cost]:
    """Ask MLflow what the stages of a result took, in their order."""
    return [_cost(store, stage) for stage in linked]


def _cost(store: Store, linked: Linked) -> Cost:
    run = store.client.get_run(linked.run_id)
    tags, figures = run.data.tags, run.data.metrics
    was_restored = tags.get("status") == "restored"
    return Cost(
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
