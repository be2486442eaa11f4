"""Reporting an event: to Prefect, and as a message to every address.

Nothing here fails a run, or delays it for more than a few seconds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from flows.events import outbox
from flows.events.addresses import Address, addresses
from flows.events.messages import Event, of_decision
from flows.events.prefect_events import emit
from tasks.common.errors import InputError
from tasks.registry.promotion.decisions import Decision, past_decisions
from tasks.settings.choices import EventKind
from tasks.settings.params import Notify, load_params

# Where params.yaml cannot be read, which is a failure worth a message.
EVERYTHING = Notify(events=list(get_args(EventKind)), stuck_minutes=60)
logger = logging.getLogger(__name__)


def report(*events: Event) -> None:
    """Report events, and deliver what waits from before."""
    wanted, to = settings().events, _addresses()
    for event in events:
        emit(event)
        if event.kind in wanted and to:
            try:
                outbox.put(event.title, event.body, to)
            except OSError as error:
                logger.warning("the notification %s is lost: %s (%s)", event.kind, outbox.OUTBOX, error.strerror)
    if to:
        send_waiting(to)


def send_waiting(to: list[Address] | None = None) -> list[outbox.Undelivered]:
    """Deliver what waits; an address that does not take it costs a warning, and is tried again next time."""
    try:
        undelivered = outbox.send(_addresses() if to is None else to)
    except OSError as error:
        logger.warning("no notification could be delivered: %s (%s)", outbox.OUTBOX, error.strerror)
        return []
    for address, reason in undelivered:
        logger.warning("%s takes no notification (%s): it waits for the next run or trueline notify", address, reason)
    return undelivered


def settings() -> Notify:
    """Read which events are wanted."""
    try:
        return load_params().notify
    except InputError:
        return EVERYTHING


@contextmanager
def decisions_reported() -> Iterator[None]:
    """Report the decisions that are made in the block, also where it fails after one."""
    before = {decision["id"] for decision in decisions()}
    try:
        yield
    finally:
        with failing_nobody():
            made = [decision for decision in decisions() if decision["id"] not in before]
            if made:
                report(*map(of_decision, made))


@contextmanager
def failing_nobody() -> Iterator[None]:
    """Turn a fault of reporting into a logged traceback: what is reported has happened, and must not fail by it."""
    try:
        yield
    except Exception:
        logger.exception("an event could not be reported")


def decisions() -> list[Decision]:
    """Read the decision log; where it is damaged, which every command says, it has none."""
    try:
        return past_decisions()
    except InputError:
        return []


def _addresses() -> list[Address]:
    try:
        return addresses()
    except InputError as error:
        logger.warning("no notification is sent: %s", error)
        return []
