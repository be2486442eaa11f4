"""Events for Prefect's automations, sent to the server that PREFECT_API_URL names."""

import logging
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx

from flows.events.messages import Event, place
from flows.prefect_server.address import credentials, named_server
from tasks.common.safe_text import without_secrets
from tasks.settings.choices import EventKind

SECONDS = 4.0
SOURCE_CHANGED = "trueline.source.changed"
NAMES: dict[EventKind, str] = {
    "promoted": "trueline.promoted",
    "refused": "trueline.refused",
    "held": "trueline.held",
    "rolled_back": "trueline.rolled_back",
    "failed": "trueline.run.failed",
    "stuck": "trueline.run.stuck",
    "recovered": "trueline.run.recovered",
    "stale": "trueline.reward.stale",
}
logger = logging.getLogger(__name__)


def emit(event: Event) -> None:
    """Send an event, if a server is named; one that cannot be reached costs a warning and at most a few seconds."""
    emit_named(NAMES[event.kind], {"verdict": event.verdict, "figures": event.figures, "link": event.link})


def emit_named(name: str, payload: Mapping[str, object]) -> None:
    """Send an event of this name about this checkout, as `emit` does."""
    server = named_server()
    if server is None:
        return
    folder = Path.cwd()
    resource = {"prefect.resource.id": f"trueline.checkout.{folder.name}", "prefect.resource.name": place()}
    body = {
        "id": str(uuid.uuid4()),
        "event": name,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": resource,
        "payload": dict(payload),
    }
    try:
        # Prefect's own client sends from a thread that waits for a lost server without an end.
        httpx.post(f"{server}/events", json=[body], headers=credentials(), timeout=SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        logger.warning("the event %s is not known to Prefect: %s", name, without_secrets(str(error)))
