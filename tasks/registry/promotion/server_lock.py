"""One turn at a time at the registry, of all checkouts that share a server.

MLflow's aliases have no compare-and-swap. What its registry gives out once is the number of a version: whoever wants a
turn makes a version of the model `<policy>-turns`, a ticket. The lowest ticket has the turn; its owner renews it, and
deletes it in the end. A ticket that was not renewed for EXPIRY_SECONDS of the server's clock is deleted by the next in
line. No number is used twice, so that deletes no other's; and an owner whose ticket is gone, or who has stood still for
STANDSTILL_SECONDS, changes nothing any more.
"""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.files import STATE, write_json
from tasks.registry.mlflow_runs.store import Store, is_passing, main_checkout
from tasks.registry.promotion.decisions import who

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

RENEWAL_SECONDS, STANDSTILL_SECONDS, EXPIRY_SECONDS = 20.0, 60.0, 120.0
WAIT_SECONDS, LOOK_SECONDS = 150.0, 0.5  # for the tickets before ours: longer than a dead one lasts
BUSY_SECONDS = 10.0  # for a database that many write to at once
NOWHERE = "trueline:/turn"  # MLflow wants to know where the files of a version lie; a ticket has none

logger = logging.getLogger(__name__)


class Turn:
    """A ticket at the registry, and whether it still counts."""

    def __init__(self, store: Store, ticket: "ModelVersion") -> None:
        self.ticket = ticket  # as it was when last renewed
        self._store, self._renewed = store, time.monotonic()
        self._ended = threading.Event()

    def check(self) -> None:
        """Renew the ticket; to be called just before a change.

        Raises:
            InputError: this process has stood still, and another may have taken it for dead.
        """
        if not self.renew():
            raise InputError(
                "this command stood still for so long that another may have had its turn at the registry since: "
                "look at trueline history and trueline status, and ask again"
            )

    def renew(self) -> bool:
        """Have the server note that the owner lives, unless it is too late for that."""
        from mlflow.exceptions import MlflowException

        asked = time.monotonic()
        if asked - self._renewed > STANDSTILL_SECONDS:
            return False
        try:
            name, number = self.ticket.name, self.ticket.version
            self.ticket = self._store.client.update_model_version(name, number, f"renewed {_now()}")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
        self._renewed = asked
        return True

    def keep(self) -> None:
        """Renew it for as long as it lasts: to upload a model takes minutes."""
        while not self._ended.wait(RENEWAL_SECONDS):
            with suppress(Exception):  # `check` tells
                self.renew()

    def end(self) -> None:
        """Give the ticket back; where the server is away, it expires."""
        self._ended.set()
        with suppress(Exception):
            _delete(self._store, self.ticket)


@contextmanager
def take_turn(store: Store, policy: str) -> Iterator[Turn]:
    """Have a turn at the registry for a block; to be asked for by one process of a checkout at a time.

    Raises:
        InputError: another checkout is having its turn for minutes, or MLflow is away.
    """
    turn = Turn(store, _new_ticket(store, f"{policy}-turns"))
    try:
        _wait(store, turn)
        threading.Thread(target=turn.keep, daemon=True).start()
        yield turn
    finally:
        turn.end()


def _new_ticket(store: Store, name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    tags = {"checkout": _checkout(), "who": f"{who()} (process {os.getpid()})"}
    began = time.monotonic()
    while True:
        try:
            return store.client.create_model_version(name, NOWHERE, tags=tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                ensure_model(store, name)
            elif not is_passing(error) or time.monotonic() - began > BUSY_SECONDS:
                raise
            else:
                time.sleep(LOOK_SECONDS)


def _wait(store: Store, turn: Turn) -> None:
    """Wait until no lower ticket is left; delete those of the dead."""
    began, told = time.monotonic(), False
    while before := _before(store, turn.ticket):
        first = before[0]
        said, since = first.tags.get("who", "somebody"), _clock(first.creation_timestamp)
        silent = (_updated(turn.ticket) - _updated(first)) / 1000
        if first.tags.get("checkout") == _checkout() or silent > EXPIRY_SECONDS:
            _delete(store, first)
            continue
        if time.monotonic() - began > WAIT_SECONDS:
            raise InputError(
                f"{said} has been changing the registry since {since}, and its process lives: ask again when that is "
                "done, or end it"
            )
        if not told:
            logger.warning("waiting for %s, who is changing the registry since %s", said, since)
            told = True
        time.sleep(LOOK_SECONDS)
        turn.check()  # for the server's clock, too


def _before(store: Store, ticket: "ModelVersion") -> "list[ModelVersion]":
    found = store.client.search_model_versions(f"name = '{ticket.name}'")
    lower = [version for version in found if int(version.version) < int(ticket.version)]
    return sorted(lower, key=lambda version: int(version.version))


def _delete(store: Store, ticket: "ModelVersion") -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.delete_model_version(ticket.name, ticket.version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # its owner, or another in line, was faster
            raise


def ensure_model(store: Store, name: str) -> None:
    """Make a registered model where there is none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _checkout() -> str:
    """Name this checkout as no other is named: a copy of it, or one at the same place elsewhere, draws another name."""
    path = main_checkout() / STATE / "checkout.json"
    place = f"{platform.node()}:{main_checkout()}"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("place") != place:
        known = {"place": place, "name": uuid.uuid4().hex}
        write_json(path, known)
    return str(known["name"])


def _updated(ticket: "ModelVersion") -> int:
    """Milliseconds, by the server's clock."""
    return ticket.last_updated_timestamp or ticket.creation_timestamp


def _clock(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
