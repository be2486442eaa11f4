"""A lock on the registry that all checkouts with the same MLflow server share.

MLflow's aliases have no compare-and-swap, but its registry gives out each version number once. A process that wants the
lock creates a version of the registered model `<policy>-turns`: its ticket. The lowest ticket has the lock. Its owner
renews it and deletes it in the end. The next in line deletes a ticket that was not renewed for EXPIRY_SECONDS of the
server's clock. Numbers are never reused, so this deletes no other ticket. An owner whose ticket is gone, or who has
been suspended for SUSPENDED_SECONDS, changes nothing any more.
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
from tasks.registry.mlflow_runs.store import Store, is_transient, main_checkout
from tasks.registry.promotion.decisions import system_user

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

RENEWAL_SECONDS, SUSPENDED_SECONDS, EXPIRY_SECONDS = 20.0, 60.0, 120.0
WAIT_SECONDS, POLL_SECONDS = 150.0, 0.5  # for the tickets before ours: longer than an abandoned one lasts
BUSY_SECONDS = 10.0  # for a database that many processes write to
TICKET_MODEL_SUFFIX = "-turns"  # the same in every release: it keeps an older one out, too
NO_SOURCE = "trueline:/turn"  # MLflow asks for the source of a version; a ticket has none

logger = logging.getLogger(__name__)


class ServerLock:
    """A ticket for the registry, and whether it is still valid."""

    def __init__(self, store: Store, ticket: "ModelVersion") -> None:
        self.ticket = ticket  # as of the last renewal
        self._store, self._renewed = store, time.monotonic()
        self._released = threading.Event()

    def check(self) -> None:
        """Renew the ticket; call it just before a change.

        Raises:
            InputError: this process was suspended, and another may have taken the lock.
        """
        if not self.renew():
            raise InputError(
                "this command was suspended for so long that another may have changed the registry since: "
                "look at trueline history and trueline status, and run it again"
            )

    def renew(self) -> bool:
        """Renew the ticket on the server; return False if it has expired."""
        from mlflow.exceptions import MlflowException

        asked = time.monotonic()
        if asked - self._renewed > SUSPENDED_SECONDS:
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

    def renew_until_release(self) -> None:
        """Renew the ticket every few seconds: uploading a model takes minutes."""
        while not self._released.wait(RENEWAL_SECONDS):
            with suppress(Exception):  # `check` raises
                self.renew()

    def release(self) -> None:
        """Delete the ticket; if the server cannot be reached, the ticket expires."""
        self._released.set()
        with suppress(Exception):
            _delete(self._store, self.ticket)


@contextmanager
def lock_server(store: Store, policy: str) -> Iterator[ServerLock]:
    """Hold the lock for a block; only one process of a checkout may ask at a time.

    Raises:
        InputError: another checkout keeps the lock for minutes, or MLflow cannot be reached.
    """
    lock = ServerLock(store, _new_ticket(store, f"{policy}{TICKET_MODEL_SUFFIX}"))
    try:
        _wait(store, lock)
        threading.Thread(target=lock.renew_until_release, daemon=True).start()
        yield lock
    finally:
        lock.release()


def _new_ticket(store: Store, name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    tags = {"checkout": _checkout(), "who": f"{system_user()} (process {os.getpid()})"}
    began = time.monotonic()
    while True:
        try:
            return store.client.create_model_version(name, NO_SOURCE, tags=tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                ensure_model(store, name)
            elif not is_transient(error) or time.monotonic() - began > BUSY_SECONDS:
                raise
            else:
                time.sleep(POLL_SECONDS)


def _wait(store: Store, lock: ServerLock) -> None:
    """Wait until no lower ticket is left; delete abandoned ones."""
    began, is_logged = time.monotonic(), False
    while before := _before(store, lock.ticket):
        first = before[0]
        owner, since = first.tags.get("who", "somebody"), _clock(first.creation_timestamp)
        silent_seconds = (_updated(lock.ticket) - _updated(first)) / 1000
        if first.tags.get("checkout") == _checkout() or silent_seconds > EXPIRY_SECONDS:
            _delete(store, first)
            continue
        if time.monotonic() - began > WAIT_SECONDS:
            raise InputError(
                f"{owner} has been changing the registry since {since}, and the process is alive: run this again when "
                "it has finished, or end it"
            )
        if not is_logged:
            logger.warning("waiting for %s, who has been changing the registry since %s", owner, since)
            is_logged = True
        time.sleep(POLL_SECONDS)
        lock.check()  # also updates our time by the server's clock


def _before(store: Store, ticket: "ModelVersion") -> "list[ModelVersion]":
    found = store.client.search_model_versions(f"name = '{ticket.name}'")
    lower = [version for version in found if int(version.version) < int(ticket.version)]
    return sorted(lower, key=lambda version: int(version.version))


def _delete(store: Store, ticket: "ModelVersion") -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.delete_model_version(ticket.name, ticket.version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # its owner, or another process in line, was faster
            raise


def ensure_model(store: Store, name: str) -> None:
    """Create a registered model if there is none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _checkout() -> str:
    """Return a name that no other checkout has: a copy, or one at the same path on another machine, gets its own."""
    path = main_checkout() / STATE / "checkout.json"
    place = f"{platform.node()}:{main_checkout()}"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("place") != place:
        known = {"place": place, "name": uuid.uuid4().hex}
        write_json(path, known)
    return str(known["name"])


def _updated(ticket: "ModelVersion") -> int:
    """Return the time of the last renewal in milliseconds, by the server's clock."""
    return ticket.last_updated_timestamp or ticket.creation_timestamp


def _clock(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
