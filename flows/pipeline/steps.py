"""The steps of a flow in their order: tasks under Prefect, and plain calls where no stage is stale."""

from collections.abc import Callable
from typing import NamedTuple

from flows.checks.preflight import preflight
from flows.events.freshness import check_freshness
from flows.events.runs import run_reported
from flows.prefect_server.address import check_reachable
from flows.processes.locks import one_flow_at_a_time
from flows.sharing.publish import publish_after_run, take_in_before_run
from flows.stages.last_run import Recording, recorded
from flows.stages.reproduce import StageRun
from flows.stages.walk import Walk
from tasks.registry.dvc_outputs.graph import GraphStatus, graph_status
from tasks.registry.lineage import sync
from tasks.registry.lineage.report import write_report
from tasks.registry.promotion import champion
from tasks.registry.promotion.opponent import refresh_opponent
from tasks.settings.params import Params

ALIGN = "align"  # the last stage before those that compare with the opponent


class Result(NamedTuple):
    """What came of a flow."""

    stages: list[StageRun]
    registered: champion.Registered
    promotion: champion.Promotion
    alarms: list[str]  # stages that gave other bytes than before on the same input; why nothing was published


class Steps(NamedTuple):
    """What a flow calls, in this order."""

    name_opponent: Callable[[Params, GraphStatus], GraphStatus]
    run_stage: Callable[[Walk, str], StageRun]
    sync_lineage: Callable[[Params], sync.Synced]
    register: Callable[[Params], champion.Registered]
    check_freshness: Callable[[Params], None]
    report: Callable[[Params], object]
    promote: Callable[[Params], champion.Promotion]


def name_opponent(params: Params, graph: GraphStatus) -> GraphStatus:
    """Write whom the candidate must beat into opponent.json; gives what DVC says of the stages then."""
    return graph_status() if refresh_opponent(params, graph) else graph


def check(server: str) -> None:
    """Check what a run under a Prefect server needs, before Prefect is loaded; a fault is recorded and reported.

    Args:
        server: the address of its API.

    Raises:
        InputError: something must be fixed, the server does not answer, or another flow runs in this checkout.
    """
    with run_reported(), one_flow_at_a_time(), recorded() as recording:
        recording.is_run = False  # the flow's own record says what comes of it
        preflight()
        check_reachable(server)


def begin(steps: Steps) -> tuple[Params, GraphStatus]:
    """Take in other machines' record, check what a run needs, and name the opponent.

    Returns:
        The settings, and what DVC says of the stages.

    Raises:
        InputError: something must be fixed.
    """
    take_in_before_run()
    params, graph = preflight()
    return params, steps.name_opponent(params, graph)


def finish(steps: Steps, params: Params, walk: Walk, recording: Recording) -> Result:
    """Bring every stage up to date, then link, register, report, promote and publish what came of them.

    Raises:
        InputError: something must be fixed.
        StageError: a stage failed for a reason of its own.
    """
    for stage in walk.plan:
        recording.stages.append(steps.run_stage(walk, stage))
        if stage == ALIGN and walk.has_worked:  # only now it is known whether the candidate is the champion
            walk.look(steps.name_opponent(params, graph_status()))
    synced = steps.sync_lineage(params)
    registered = steps.register(params)
    steps.check_freshness(params)  # before the report, which shows it
    steps.report(params)  # before a person is asked, who wants to read it
    recording.promotion = steps.promote(params)
    alarms = [*synced["alarms"], *publish_after_run(params)]
    return Result(recording.stages, registered, recording.promotion, alarms)


def finish_unchanged() -> Result | None:
    """Do all that the flow does where no stage is stale, without Prefect; None where one is.

    Raises:
        InputError: something must be fixed, or another flow runs in this checkout.
    """
    steps = Steps(
        name_opponent,
        Walk.bring_up_to_date,
        sync.sync,
        champion.register,
        check_freshness,
        write_report,
        champion.promote,
    )
    with run_reported(), one_flow_at_a_time(), recorded() as recording:
        params, graph = begin(steps)
        recording.is_run = not graph.stale
        return finish(steps, params, Walk(graph), recording) if recording.is_run else None
