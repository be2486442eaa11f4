"""Approval of a version by a person, in a form on the Prefect server.

The pipeline does not wait: this separate flow is suspended, without a process or a lock, until somebody fills in the
form. If `trueline approve` was faster, it ends with a message.
"""

import logging
from typing import Literal

from prefect import flow
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment

from flows.events.reporting import decisions_reported
from flows.pipeline.deployed import set_up
from flows.prefect_server.deployments import APPROVAL, approval_name
from flows.sharing.publish import publish_after_run
from tasks.registry.promotion import champion
from tasks.settings.params import load_params

logger = logging.getLogger(__name__)


class Form(RunInput):
    """The form."""

    answer: Literal["approve", "reject"]
    by: str
    reason: str


@flow(name=APPROVAL, flow_run_name="approve version {version}")
def approval(version: int, *, settings: tuple[str, ...] = ()) -> champion.Promotion:
    """Wait for a person, then approve or reject.

    Args:
        version: the number of the version.
        settings: for params.yaml, as `trueline configure` takes them.

    Raises:
        InputError: the version does not await approval any more, or the champion has changed since the gate compared.
    """
    form = suspend_flow_run(wait_for_input=Form)
    set_up(settings, None)
    act = champion.approve if form.answer == "approve" else champion.reject
    params = load_params()
    with decisions_reported():
        promotion = act(params, str(version), form.by, form.reason)
    for alarm in publish_after_run(params):
        logger.warning(alarm)
    return promotion


def ask(held: champion.Promotion) -> None:
    """Start the approval flow, once per version and champion; without a schedule nothing would run it."""
    if deployment.id:
        run_deployment(
            f"{APPROVAL}/{approval_name(deployment.name)}",
            parameters={"version": held["version"]},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"version {held['version']} after {held['champion']}",
        )
