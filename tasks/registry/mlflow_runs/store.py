"""Connecting to MLflow, without its output, and with one clear message where it cannot be reached.

The client always gets its address: MLflow's global setting is in the environment, and would leak from one checkout into
another.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast
from urllib.parse import unquote

from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.database import prepared, sqlite_fault

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
PASSWORD_IN_ADDRESS = re.compile(r"(https?://)([^:/@]+):(.+)@([^@]+)")
ANSWER_SECONDS = 30.0  # for all requests of a call together
DRIVERS = {"psycopg2": "psycopg2-binary", "psycopg": "'psycopg[binary]'", "MySQLdb": "mysqlclient"}
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
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{main_checkout() / 'mlflow.db'}"


def open_store(experiment: str) -> Store:
    """Connect to MLflow, and find or create the experiment.

    Raises:
        InputError: the store cannot be reached or used, or the experiment has been deleted.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _separate_credentials()
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs every fault with a traceback
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs every retry
    uri = tracking_uri()
    registry = os.environ.get("MLFLOW_REGISTRY_URI") or uri

    def opened() -> Store:
        with ExitStack() as opening:
            opening.enter_context(_reachable(uri))
            for database in {uri: None, registry: None}:
                opening.enter_context(prepared(database, main_checkout()))
            client = MlflowClient(uri, registry)
            return Store(client, uri, _experiment_id(client, experiment))

    return with_timeout(uri, opened)


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
            f"MLflow at {without_secrets(uri)} has not answered for {ANSWER_SECONDS:.0f} seconds: restart it if "
            "it hangs, or unset MLFLOW_TRACKING_URI to use mlflow.db in this folder"
        ) from None
    if error:
        raise error
    return cast("Answer", answer)


def _separate_credentials() -> None:
    """Pass user and password to MLflow in variables of their own: it quotes its address in messages, links and tags."""
    found = set()
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        address = os.environ.get(variable, "")
        if with_password := PASSWORD_IN_ADDRESS.fullmatch(address):
            scheme, user, password, server = with_password.groups()
            os.environ[variable] = scheme + server
            found.add((unquote(user), unquote(password)))
    if len(found) > 1:
        raise InputError("MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI name two users: use one user in both")
    for user, password in found:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password


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
    return without_secrets((str(error).splitlines() or [type(error).__name__])[0])


@contextmanager
def _reachable(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        package = DRIVERS.get(str(error.name), error.name)
        raise InputError(
            f"MLflow at {without_secrets(uri)} needs {error.name}, which is not installed: "
            f".venv/bin/pip install {package}, or fix MLFLOW_TRACKING_URI"
        ) from error
    except (MlflowException, SQLAlchemyError, ValueError) as error:
        raise InputError(
            sqlite_fault(uri, _reason(error))
            or f"MLflow at {without_secrets(uri)} cannot be used ({_reason(error)}): start it, fix "
            "MLFLOW_TRACKING_URI, or unset it to use mlflow.db in this folder"
        ) from error


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
    return None if os.environ.get("MLFLOW_TRACKING_URI") else (main_checkout() / "mlruns").as_uri()
