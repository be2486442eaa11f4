"""The part of the pipeline that a GPU pool runs: it fetches the data, trains, and pushes the results."""

from typing import cast

from prefect import flow
from prefect.states import Cancelled

from flows.checks.preflight import preflight
from flows.pipeline.deployed import set_up
from flows.pipeline.flow import run_by_name
from flows.pipeline.hand_over import GPU_STAGES, push
from flows.pipeline.steps import name_opponent
from flows.prefect_server.abandoned_runs import end_runs_of_crashed_flow
from flows.prefect_server.deployments import GPU_PART
from flows.prefect_server.own_run import CancelledOnServerError, own_run
from flows.processes.locks import one_flow_at_a_time
from flows.stages.fetching import Fetching
from flows.stages.walk import Walk
from tasks.common.safe_text import clean_logs


@flow(name=GPU_PART, on_crashed=[end_runs_of_crashed_flow])
def gpu_part(*, settings: tuple[str, ...] = (), remote: str | None = None) -> list[str]:
    """Bring the stages that want a GPU up to date; gives their outcomes.

    Args:
        settings: for params.yaml, as `trueline configure` takes them.
        remote: DVC's remote.

    Raises:
        InputError: something must be fixed, or another flow runs in this checkout.
        StageError: a stage failed for a reason of its own.
    """
    clean_logs()
    try:
        with own_run(), one_flow_at_a_time(wait=True):
            set_up(settings, remote)
            params, graph = preflight()
            graph = name_opponent(params, graph)
            walk = Walk(graph, Fetching(graph, pull=True))
            last = max(walk.plan.index(stage) for stage in GPU_STAGES if stage in walk.plan)
            runs = [run_by_name(walk, stage) for stage in walk.plan[: last + 1]]
            push()
            return [f"{run.stage}: {run.outcome}" for run in runs]
    except CancelledOnServerError:
        return cast("list[str]", Cancelled(message="Cancelled; run again to continue."))
