"""MLflow's runs of flows that crashed, which their own process cannot end any more."""

import os
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound

from flows.prefect_server.own_run import AWAY, has_run_here
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.mlflow_runs.tracking import FLOW_RUN, end_abandoned
from tasks.settings.params import Params, load_params


def end_runs_of_crashed_flow(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End as KILLED the MLflow runs of a flow's process that was killed: Prefect's runner or worker calls this.

    Raises:
        InputError: MLflow cannot be reached.
    """
    if not has_run_here():  # a flow that ends by itself has ended its stages, which end their runs
        end_abandoned(open_store(load_params().registry.experiment), lambda started_by: started_by == str(flow_run.id))


def end_runs_of_ended_flows(params: Params) -> None:
    """End as KILLED the MLflow runs whose flow run the Prefect server knows as ended.

    Raises:
        InputError: MLflow cannot be reached.
    """
    if FLOW_RUN not in os.environ:  # no server that stays, which knows of other runs
        return
    with get_client(sync_client=True) as client:
        end_abandoned(open_store(params.registry.experiment), lambda flow_run: _has_ended(client, flow_run))


def _has_ended(client: SyncPrefectClient, flow_run: str) -> bool:
    try:
        state = client.read_flow_run(UUID(flow_run)).state
    except (ObjectNotFound, *AWAY):  # another server's, or nobody to ask: the next run asks again
        return False
    return state is not None and state.is_final()
