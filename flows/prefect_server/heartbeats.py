"""Runs whose process is gone: every run says each half minute that it lives, and the server ends one that is silent.

The rule is an automation on the Prefect server, so it holds where a whole machine or container is gone.
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

HEARTBEAT_VARIABLE, HEARTBEAT_SECONDS = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", 30  # the shortest that Prefect knows
SILENT_SECONDS = 80  # the server looks each 5 seconds: `Crashed` at most 90 seconds after the last heartbeat
RULE = "trueline: a run without heartbeat has crashed"
OUTCOMES = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Suspended", "Paused")


def send_heartbeats() -> None:
    """Have the flows of this process and of its children send heartbeats; call it before Prefect is imported."""
    os.environ.setdefault(HEARTBEAT_VARIABLE, str(HEARTBEAT_SECONDS))


def rule(flows: tuple[str, ...]) -> "AutomationCore":
    """Give the automation that ends the silent runs of some flows as `Crashed`."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=RULE,
        description="Made by Trueline. A run that was silent though it lived says so, and is Running again.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{outcome}" for outcome in OUTCOMES)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": list(flows)}
            ),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {SILENT_SECONDS} seconds: its process or its machine has ended.",
            )
        ],
    )


def ensure_rule(flows: tuple[str, ...]) -> None:
    """Make the rule on the Prefect server, or bring it up to date."""
    from prefect.client.orchestration import get_client

    wanted = rule(flows)
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(RULE)
        if found:
            client.update_automation(found[0].id, wanted)
        else:
            client.create_automation(wanted)
