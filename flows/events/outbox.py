"""Messages on disk until every address has them.

A message lies in a file of its own, with the fingerprints of the addresses that still wait for it. A kill between the
delivery and the removal from the file delivers the message twice, and never loses it.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from filelock import FileLock, Timeout

from flows.events.addresses import Address
from flows.events.delivery import deliver
from tasks.common.files import STATE, write_json

OUTBOX = STATE / "notifications"
OLDEST = timedelta(days=7)  # news of last week are none
SECONDS = 8.0  # for all addresses together, at a time
logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """A message that waits."""

    time: str  # UTC
    title: str
    body: str
    waiting: list[str]  # fingerprints of addresses

    @property
    def is_old(self) -> bool:
        """Whether nobody needs it any more."""
        return datetime.now(UTC) - datetime.fromisoformat(self.time) > OLDEST


class Undelivered(NamedTuple):
    """An address that took a message not, and why."""

    address: Address
    reason: str


def put(title: str, body: str, to: Sequence[Address]) -> None:
    """Save a message for these addresses.

    Raises:
        OSError: it cannot be written.
    """
    time_now = datetime.now(UTC)
    name = f"{time_now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}.json"  # the order of the names is that of the events
    waiting = [address.fingerprint for address in to]
    write_json(OUTBOX / name, Message(time_now.isoformat(timespec="seconds"), title, body, waiting)._asdict())


def waiting() -> list[Message]:
    """Give the messages that wait, the oldest first."""
    return [message for path in sorted(OUTBOX.glob("*.json")) if (message := _read(path))]


def send(to: Sequence[Address], seconds: float = SECONDS) -> list[Undelivered]:
    """Deliver what waits for these addresses, the oldest first, each address by a thread of its own.

    What takes longer than `seconds` stays on disk, as does what an address does not take; messages of over a week, and
    those of which no address is named any more, are dropped with a warning. Where another process or thread delivers
    for so long, this one leaves it to that.
    """
    if not any(OUTBOX.glob("*.json")):
        return []
    try:
        with FileLock(OUTBOX / "lock", timeout=seconds):
            return _send(to, seconds)
    except Timeout:
        return []


def _send(to: Sequence[Address], seconds: float) -> list[Undelivered]:
    messages = _current({address.fingerprint for address in to})
    answers: SimpleQueue[tuple[Address, Path | None, str | None]] = SimpleQueue()
    begun = [
        address
        for address in to
        if (queue := [item for item in messages.items() if address.fingerprint in item[1].waiting])
        and _start(address, queue, answers)
    ]
    slow = {address.number: address for address in begun}
    undelivered, deadline = [], time.monotonic() + seconds
    while slow and (left := deadline - time.monotonic()) > 0:
        try:
            address, path, fault = answers.get(timeout=left)
        except Empty:
            break
        if path is None:  # all of its messages have been tried, or one has failed
            del slow[address.number]
            if fault:
                undelivered.append(Undelivered(address, fault))
        else:
            messages[path] = _without(path, messages[path], address)
    return undelivered + [Undelivered(address, f"no answer in {seconds:g} seconds") for address in slow.values()]


def _start(
    address: Address,
    queue: Sequence[tuple[Path, Message]],
    answers: "SimpleQueue[tuple[Address, Path | None, str | None]]",
) -> threading.Thread:
    def work() -> None:
        fault = None
        for path, message in queue:
            fault = deliver(address, message.title, _dated(message))
            if fault:
                break
            answers.put((address, path, None))
        answers.put((address, None, fault))

    # One that hangs ends with the process.
    thread = threading.Thread(target=work, daemon=True, name=f"notification {address.number}")
    thread.start()
    return thread


def _dated(message: Message) -> str:
    """Give the text, with the time of the event where it is delivered late."""
    is_late = datetime.now(UTC) - datetime.fromisoformat(message.time) > timedelta(minutes=1)
    return f"{message.body}\n(of {message.time}, delivered late)" if is_late else message.body


def _without(path: Path, message: Message, address: Address) -> Message:
    left = message._replace(waiting=[each for each in message.waiting if each != address.fingerprint])
    if left.waiting:
        write_json(path, left._asdict())
    else:
        path.unlink(missing_ok=True)
    return left


def _current(named: set[str]) -> dict[Path, Message]:
    """Give the messages to deliver; what nobody waits for is removed."""
    found = {}
    for path in sorted(OUTBOX.glob("*.json")):
        message = _read(path)
        if message is None:
            continue
        if message.is_old or not named & set(message.waiting):
            why = f"is older than {OLDEST.days} days" if message.is_old else "was for an address that is named no more"
            logger.warning("a notification of %s (%s) %s: it is dropped", message.time, message.title, why)
            path.unlink(missing_ok=True)
        else:
            found[path] = message
    return found


def _read(path: Path) -> Message | None:
    try:
        return Message(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # another process has just delivered it
        return None
    except (ValueError, TypeError):
        aside = path.rename(path.with_suffix(".damaged"))
        logger.warning("a notification is damaged and not delivered: see %s", aside)
        return None
