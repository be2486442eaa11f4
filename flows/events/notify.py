"""What `trueline notify` does: deliver what waits, or send each address a test message."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flows.events import outbox
from flows.events.addresses import Address, addresses
from flows.events.delivery import deliver
from flows.events.messages import place
from tasks.common.errors import InputError
from tasks.common.safe_text import ADDRESSES

MANY_SECONDS = 60.0  # somebody is waiting for the answer


def deliver_waiting() -> dict[str, Any]:
    """Deliver what waits; give each address with its fault, and the messages that wait still.

    Raises:
        InputError: no address is named, or one is none.
    """
    to = _named()
    faults = {found.address.number: found.reason for found in outbox.send(to, MANY_SECONDS)}
    return _notified(to, faults)


def send_test() -> dict[str, Any]:
    """Send each address a test message; give each with its fault, and the messages that wait.

    Raises:
        InputError: no address is named, or one is none.
    """
    to = _named()
    body = f"This is a test from {place()}. Messages of runs look like it: a verdict, three figures, a link."
    with ThreadPoolExecutor(len(to)) as threads:
        found = threads.map(lambda address: deliver(address, f"Trueline test: {place()}", body), to)
    return _notified(to, dict(zip((address.number for address in to), found, strict=True)))


def _named() -> list[Address]:
    if not (found := addresses()):
        raise InputError(
            f"{ADDRESSES} names no address: set it to addresses that apprise reads, such as "
            "ntfys://TOPIC or slack://TOKEN/#CHANNEL, separated by spaces"
        )
    return found


def _notified(to: list[Address], faults: Mapping[int, str | None]) -> dict[str, Any]:
    return {
        "addresses": [{"address": str(address), "fault": faults.get(address.number)} for address in to],
        "waiting": [{"time": message.time, "title": message.title} for message in outbox.waiting()],
    }
