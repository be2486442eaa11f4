"""Connecting to MLflow, without its output, and with one clear message where it cannot be reached.

The client always gets its address: MLflow's global setting is in the environment, and would leak from one checkout into
another.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from tasks.common.errors import InputError
from tasks.common.network import by_proxy
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.addresses import (
    REGISTRY,
    TRACKING,
    cause,
    check_address,
    check_connection,
    missing_driver,
    named,
    separate_passwords,
)
from tasks.registry.mlflow_runs.database import prepared, sqlite_fault
from tasks.registry.mlflow_runs.schema import check_schema

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

# By default MLflow sends usage data, draws progress bars and waits about five minutes for a dead server.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
ANSWER_SECONDS = 30.0  # for all requests of a call together
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
LOGGED = {
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # it logs every fault with a traceback
    "mlflow.utils.databricks_utils": logging.CRITICAL,  # the same, before the error that is reported
    "alembic": logging.WARNING,
    "urllib3.connectionpool": logging.ERROR,  # it logs every retry
}
TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")

Answer = TypeVar("Answer")


class Store(NamedTuple):
    """A connection to an MLflow store, and the experiment in it."""

    client: "MlflowClient"
    uri: str
    experiment_id: str


def main_checkout() -> Path:
    """Return the checkout that holds the database: DVC_ROOT names it in a copy made by `dvc exp run --temp`."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or else the address of mlflow.db in the checkout."""
    return named(TRACKING) or f"sqlite:///{main_checkout() / 'mlflow.db'}"


def open_store(experiment: str) -> Store:
    """Connect to MLflow, and find or create the experiment.

    Raises:
        InputError: the store cannot be reached or used, or the experiment has been deleted.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for variable in (TRACKING, REGISTRY):
        check_address(variable)
    separate_passwords()
    from mlflow import MlflowClient

    for library, level in LOGGED.items():
        logging.getLogger(library).setLevel(level)
    uri = tracking_uri()
    registry = named(REGISTRY) or uri

    def opened() -> Store:
        with _reachable(TRACKING, uri), prepared(uri, main_checkout()):
            check_connection(uri)
            check_schema(TRACKING, uri)
            client = MlflowClient(uri, registry)
            return Store(client, uri, _experiment_id(client, experiment))

    store = with_timeout(uri, opened)
    if registry != uri:
        with_timeout(registry, lambda: _check_registry(store.client, registry))
    return store


def _check_registry(client: "MlflowClient", uri: str) -> None:
    """Ask the registry for something, where it is another store: a fault is found now and not at a decision."""
    with _reachable(REGISTRY, uri), prepared(uri, main_checkout()):
        check_connection(uri)
        check_schema(REGISTRY, uri)
        client.search_registered_models(max_results=1)


def is_local(uri: str) -> bool:
    """Return whether the store is a database file, which may be busy but does not hang, and not a server."""
    return uri.startswith("sqlite:")


def with_timeout(uri: str, call: Callable[[], Answer]) -> Answer:
    """Return the result of calls to MLflow.

    Raises:
        InputError: the server takes longer than ANSWER_SECONDS; a thread goes on waiting and ends with the process.
    """
    if is_local(uri):
        return call()
    answers: SimpleQueue[tuple[Answer | None, BaseException | None]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=ANSWER_SECONDS)
    except Empty:
        raise InputError(
            f"MLflow at {without_secrets(uri)} has not answered{by_proxy(uri)} for {ANSWER_SECONDS:.0f} seconds: "
            f"{_restart(uri)}, or unset {TRACKING} to use mlflow.db in this folder"
        ) from None
    if error:
        raise error
    return cast("Answer", answer)


def is_transient(error: "MlflowException") -> bool:
    """Return whether an error comes from the connection or a busy database, and not from a wrong request."""
    return error.error_code in TRANSIENT


def mlflow_fault(error: BaseException) -> str | None:
    """Return the message for an error of MLflow that may not occur again; None for any other error."""
    library = type(error).__module__.partition(".")[0]  # without importing it
    if library not in ("mlflow", "requests"):
        return None
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and not is_transient(error):
        return None
    uri, reason = tracking_uri(), _reason(error)
    return sqlite_fault(uri, reason) or (
        f"MLflow at {without_secrets(uri)} failed halfway ({reason}): fix that and run the command again, which then "
        "finishes what has been decided"
    )


def _reason(error: BaseException) -> str:
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return without_secrets(cause(first))


def _restart(uri: str) -> str:
    return "fix the proxy, or name the server's host in NO_PROXY" if by_proxy(uri) else "restart it if it hangs"


@contextmanager
def _reachable(variable: str, uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise missing_driver(variable, uri, error) from error
    except (MlflowException, SQLAlchemyError, ValueError) as error:
        raise InputError(
            sqlite_fault(uri, _reason(error))
            or f"MLflow at {without_secrets(uri)} cannot be used{by_proxy(uri)} ({_reason(error)}): "
            f"{_start(uri, error)}, fix {variable}, or unset it to use mlflow.db in this folder"
        ) from error


def _start(uri: str, error: BaseException) -> str:
    if by_proxy(uri):
        return "fix the proxy, or name the server's host in NO_PROXY"
    if getattr(error, "error_code", "") in REFUSED:
        return "give user and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return "start it"


def _experiment_id(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
            return _experiment_id(client, name)
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"the MLflow experiment {name} has been deleted: run mlflow experiments restore "
            f"--experiment-id {found.experiment_id}, or name another as registry.experiment in params.yaml"
        )
    return str(found.experiment_id)


def _artifact_location() -> str | None:
    """Return the folder of artifacts beside the checkout's own database; a server chooses its own."""
    return None if named(TRACKING) else (main_checkout() / "mlruns").as_uri()
