"""Commands of events: messages, and sources that are watched."""

import sys
from typing import Annotated

import typer

from flows.commands.common import AsJson, print_result


def notify(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to each address.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver the messages that wait, and show what waits still.

    The addresses are in TRUELINE_NOTIFY.
    """
    from flows.display.events import show_notified
    from flows.events.notify import deliver_waiting, send_test

    notified = send_test() if test else deliver_waiting()
    print_result(notified, as_json, show_notified)
    if any(address["fault"] for address in notified["addresses"]):
        raise typer.Exit(1)


def watch(
    *,
    quiet: Annotated[str, typer.Option(help="Time without a change after which a source is complete.")] = "60s",
    every: Annotated[str, typer.Option(help="Time between two looks.")] = "10s",
    once: Annotated[bool, typer.Option("--once", help="Look once, for cron.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Start a run in any case, also after a failure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON an event.")] = False,
) -> None:
    """Start a run whenever a source's content has changed.

    It watches what params.yaml names. The run is made here or, with PREFECT_API_URL, by the deployment of trueline
    schedule.
    """
    from flows.events.following import follow, seconds_of

    try:
        step = follow(seconds_of(quiet), seconds_of(every), once=once, again=again, as_json=as_json)
    except KeyboardInterrupt:
        sys.stderr.write("trueline: no longer watching\n")
        raise typer.Exit(130) from None
    if step.finding == "failed":
        raise typer.Exit(1)
