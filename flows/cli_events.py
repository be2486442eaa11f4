"""Commands of events: messages, and sources that are watched."""

from typing import Annotated

import typer

from flows.cli_common import AsJson, print_result


def notify(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to each address.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver the messages that wait, and show what waits still.

    The addresses are in TRUELINE_NOTIFY.
    """
    from flows.events.display import show_notified
    from flows.events.notify import deliver_waiting, send_test

    notified = send_test() if test else deliver_waiting()
    print_result(notified, as_json, show_notified)
    if any(address["fault"] for address in notified["addresses"]):
        raise typer.Exit(1)
