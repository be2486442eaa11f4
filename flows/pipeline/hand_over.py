"""Stages that a GPU pool runs: the pipeline waits for a run there, and the results come through DVC's remote."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.prefect_server.own_run import AWAY, POLL_SECONDS
from flows.stages.reproduce import StageRun
from flows.stages.walk import Walk
from tasks.common.children import child
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.remote import is_known

GPU_STAGES = ("sft", "reward", "held_out_reward", "reward_check", "align", "evaluate")


def push() -> None:
    """Push the results and the record of runs, by which another machine finds them, to DVC's default remote.

    Raises:
        InputError: DVC cannot; its own lines say why.
    """
    with child([sys.executable, "-m", "dvc", "push", "--run-cache"], stdout=subprocess.DEVNULL) as process:
        if process.wait() != 0:
            raise InputError("DVC's remote took no results, which the other pool needs: the lines above say why")


def with_gpu_part(
    run_stage: Callable[[Walk, str], StageRun], name: str, settings: Sequence[str], remote: str | None
) -> Callable[[Walk, str], StageRun]:
    """Give a way to run a stage that has the GPU pool run all of its own first, once, if one of them is stale.

    It raises InputError where the pool ends without a result, or with none that fits: nothing is trained here instead.

    Args:
        run_stage: runs or fetches a stage here.
        name: the deployment of the part, as FLOW/NAME.
        settings: the settings that this run was given.
        remote: the DVC remote that this run was given.
    """
    done: list[bool] = []

    def run(walk: Walk, stage: str) -> StageRun:
        if stage in GPU_STAGES and walk.is_stale(stage) and not is_known(stage):
            if not done:
                push()
                _run_there(name, settings, remote)
                done.append(True)
            if not is_known(stage):
                raise InputError(
                    f"the GPU part {name} made no {stage} from the code, data and settings that this run has: its "
                    "clone has others (was the branch changed meanwhile?): run again"
                )
        return run_stage(walk, stage)

    return run


def _run_there(name: str, settings: Sequence[str], remote: str | None) -> None:
    """Have the other pool run its part, and wait; it is cancelled where this run ends early."""
    parameters = {"settings": [*settings], "remote": remote}
    run = cast("FlowRun", run_deployment(name, parameters=parameters, timeout=0))
    with get_client(sync_client=True) as client:
        try:
            state: State[object] | None = None
            while not (state and state.is_final()):
                time.sleep(POLL_SECONDS)
                try:
                    state = client.read_flow_run(run.id).state
                except AWAY:
                    continue
        except BaseException:
            client.set_flow_run_state(run.id, Cancelling(message="The pipeline's run has ended."))
            raise
    if not state.is_completed():
        raise InputError(f"the GPU part, run {run.name} of {name}, ended as {state.name}: {state.message}")
