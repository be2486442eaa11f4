"""A person's word on a version that awaits approval, asked for on the page of a Prefect server.

The pipeline does not wait for it: this flow of its own is suspended, which holds no process and no lock, until somebody
fills in the form. Where `trueline approve` was faster, it ends with a sentence that says so.
"""

from typing import Literal

from prefect import flow
from prefect.deployments import run_deployment
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment

from tasks.registry.promotion import champion
from tasks.settings.params import load_params

FLOW, DEPLOYMENT = "trueline-approval", "asked"


class Form(RunInput):
    """The form."""

    answer: Literal["approve", "reject"]
    by: str
    reason: str


@flow(name=FLOW, flow_run_name="approve version {version}")
def approval(version: int) -> champion.Promotion:
    """Wait for a person, and do what they say.

    Raises:
        InputError: the version does not await approval any more, or the champion has changed since the gate compared.
    """
    said = suspend_flow_run(wait_for_input=Form)
    act = champion.approve if said.answer == "approve" else champion.reject
    return act(load_params(), str(version), said.by, said.reason)


def ask(held: champion.Promotion) -> None:
    """Start the flow that asks, once for a version and a champion; without a schedule there is nobody to run it."""
    if deployment.id:
        run_deployment(
            f"{FLOW}/{DEPLOYMENT}",
            parameters={"version": held["version"]},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"version {held['version']} after {held['champion']}",
        )
