"""Late runs: what a schedule asked for while no run could start, of which one is enough."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

WAITING = ["Scheduled", "Late", "AwaitingConcurrencySlot"]  # states of a run that has not begun
MESSAGE = "Another run covers it: of the runs that wait behind one, only the newest is kept."


def cancel_late_runs(client: "SyncPrefectClient", deployment_id: UUID, began: datetime) -> list["FlowRun"]:
    """Cancel the due scheduled runs that a run which began at `began` covers; of later ones keep the newest.

    Runs that a person started stay.

    Args:
        client: a client of the Prefect server.
        deployment_id: whose runs they are.
        began: when the run began that executes now; it reads what there was then, so it covers what was due before.

    Returns:
        The cancelled runs.
    """
    due = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]),
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=WAITING)),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    found = client.read_flow_runs(flow_run_filter=due, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    scheduled = [run for run in found if run.auto_scheduled and run.expected_start_time]
    covered = [run for run in scheduled if run.expected_start_time and run.expected_start_time <= began]
    cancelled = covered + scheduled[len(covered) : -1]
    for run in cancelled:
        client.set_flow_run_state(run.id, Cancelled(message=MESSAGE))
    return cancelled
