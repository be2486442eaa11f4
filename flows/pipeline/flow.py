"""The flow under Prefect, which keeps a record of each step and tries a stage again after a fault that may pass."""

from typing import Any, cast

from prefect import Task, flow, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import deployment
from prefect.states import Cancelled

from flows.events.freshness import check_freshness as check_the_freshness
from flows.events.runs import run_reported
from flows.pipeline.approval import ask
from flows.pipeline.deployed import set_up
from flows.pipeline.hand_over import with_gpu_part
from flows.pipeline.steps import Result, Steps, begin, finish
from flows.pipeline.steps import name_opponent as name_the_opponent
from flows.prefect_server.abandoned_runs import end_runs_of_crashed_flow, end_runs_of_ended_flows
from flows.prefect_server.deployments import PIPELINE
from flows.prefect_server.own_run import CancelledOnServerError, own_run, tell
from flows.processes.locks import one_flow_at_a_time
from flows.stages.fetching import Fetching
from flows.stages.last_run import recorded
from flows.stages.reproduce import StageError, StageRun
from flows.stages.walk import Walk
from tasks.common.safe_text import clean_logs
from tasks.registry.dvc_outputs.graph import GraphStatus
from tasks.registry.lineage import sync
from tasks.registry.lineage.report import write_report
from tasks.registry.promotion import champion
from tasks.settings.params import Params, load_params

RETRY_DELAYS = [10.0, 60.0]  # seconds


def is_passing(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Tell a fault that may pass by itself from bad input and from bugs: only such a one is tried again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and error.failure.kind == "transient"


def _run_name() -> str:
    return f"align by {load_params().align.method}"


# Prefect would make a cache key of the arguments, which nobody asks for.
@task(
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
    cache_policy=NO_CACHE,
)
def run_stage(walk: Walk, stage: str) -> StageRun:
    """Bring a stage up to date."""
    return walk.bring_up_to_date(stage)


def run_by_name(walk: Walk, stage: str) -> StageRun:
    """Bring a stage up to date, as a task with the stage's name."""
    return run_stage.with_options(name=stage)(walk, stage)


@task(name="opponent", cache_policy=NO_CACHE)
def name_opponent(params: Params, graph: GraphStatus) -> GraphStatus:
    """Write whom the candidate must beat into opponent.json; gives what DVC says of the stages then."""
    return name_the_opponent(params, graph)


@task(name="lineage", cache_policy=NO_CACHE)
def sync_lineage(params: Params) -> sync.Synced:
    """Link every stage's outputs with the MLflow run that made them."""
    return sync.sync(params)


@task(name="register", cache_policy=NO_CACHE)
def register(params: Params) -> champion.Registered:
    """Make the candidate a version in the registry."""
    return champion.register(params)


@task(name="freshness", cache_policy=NO_CACHE)
def check_freshness(params: Params) -> None:
    """Tell whether the reward model is stale."""
    check_the_freshness(params)


@task(name="report", cache_policy=NO_CACHE)
def report(params: Params) -> None:
    """Write the report, and link it from the page of the flow's run."""
    written = write_report(params)
    description = f"Promotion, figures, lineage and cost: {written['path']}, in MLflow with run {written['run_id']}"
    tell(lambda: create_link_artifact(written["address"], link_text="report", key="report", description=description))


@task(name="promote", cache_policy=NO_CACHE)
def promote(params: Params) -> champion.Promotion:
    """Make the candidate champion, if the gate says so, or have a person asked."""
    promotion = champion.promote(params)
    if promotion["held"]:
        tell(lambda: ask(promotion))
    return promotion


@flow(name=PIPELINE, flow_run_name=_run_name, on_crashed=[end_runs_of_crashed_flow])
def pipeline(
    *, pull: bool | None = None, settings: tuple[str, ...] = (), remote: str | None = None, gpu_part: str | None = None
) -> Result:
    """Take raw data to a promoted model.

    Args:
        pull: whether results that DVC's default remote has are fetched; None fetches them where it answers.
        settings: for params.yaml, as `trueline configure` takes them.
        remote: DVC's remote, in place of the default one.
        gpu_part: the deployment that runs what wants a GPU, as FLOW/NAME; None: all runs here.

    Raises:
        InputError: something must be fixed, or another flow runs in this checkout.
        StageError: a stage failed for a reason of its own.
    """
    clean_logs()  # here too: a scheduled run is a process that Prefect starts
    try:
        with (
            own_run(),
            run_reported(),
            one_flow_at_a_time(wait=deployment.id is not None),
            recorded() as recording,
        ):
            set_up(settings, remote)
            run_one = with_gpu_part(run_by_name, gpu_part, settings, remote) if gpu_part else run_by_name
            steps = Steps(name_opponent, run_one, sync_lineage, register, check_freshness, report, promote)
            params, graph = begin(steps)
            end_runs_of_ended_flows(params)
            fetching = Fetching(graph, pull=True if gpu_part else pull)
            return finish(steps, params, Walk(graph, fetching), recording)
    except CancelledOnServerError:
        # Prefect takes a state for its own.
        return cast("Result", Cancelled(message="Cancelled; run again to continue."))
