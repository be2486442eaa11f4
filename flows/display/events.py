"""What the commands of events show to people; with --json they print the same data instead."""

from collections.abc import Mapping
from typing import Any

from flows.display.tables import make_console, print_sentence

_console = make_console()


def show_notified(notified: Mapping[str, Any]) -> None:
    """Each address, and the messages that wait."""
    for address in notified["addresses"]:
        print_sentence(_console, f"{address['address']}: {address['fault'] or 'ok'}")
    for message in notified["waiting"]:
        print_sentence(_console, f"waits: {message['title']}, of {message['time']}")
