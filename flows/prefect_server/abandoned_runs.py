"""MLflow's runs of flows that crashed on another machine, which nobody there can end any more."""

import os
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from flows.prefect_server.own_run import AWAY
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.mlflow_runs.tracking import FLOW_RUN, end_abandoned
from tasks.settings.params import Params


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
