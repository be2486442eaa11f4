"""The addresses of MLflow in the environment: checked before they are used, their passwords passed beside them.

MLflow quotes its address in messages, links and tags, so it is given one without a password wherever the driver takes
the password from a variable of its own.
"""

import os
import re
import time
from types import MappingProxyType
from urllib.parse import unquote

from tasks.common.errors import InputError
from tasks.common.network import WEB, fault_of_server
from tasks.common.safe_text import without_secrets

TRACKING, REGISTRY = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
DATABASES = ("postgresql", "mysql", "mssql")  # behind a server of their own
SCHEMES = (*WEB, "sqlite", *DATABASES, "databricks")
OF_DATABRICKS = ("databricks", "databricks-uc", "uc")  # `databricks` and `databricks://PROFILE` are both addresses
EXAMPLE = "http://host:5000"
MEANT = MappingProxyType({"postgres": "postgresql", "sqlite3": "sqlite", "mariadb": "mysql"})
# How to install a module that a database needs, where its name is not the module's.
CURES = MappingProxyType(
    {
        "psycopg2": "make production",
        "psycopg": ".venv/bin/pip install 'psycopg[binary]'",
        "MySQLdb": ".venv/bin/pip install mysqlclient",
    }
)
FROM_LIBPQ = ("postgresql", "postgresql+psycopg2", "postgresql+psycopg")  # their drivers read PGPASSWORD
NO_FOLDER = (
    "which names a folder of files, where this MLflow keeps nothing: name a database (sqlite:////path/mlflow.db), "
    "or unset it to use mlflow.db in this folder"
)
SECONDS_TO_CONNECT = 10.0  # to a database that starts
_REFUSAL = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry|does not exist|access denied|unknown database|"
    "login failed|cannot open database",
    re.IGNORECASE,
)
_WITH_PASSWORD = re.compile(r"([\w+]+)://([^:/@]*):(.*)@([^@]*)")
_HOST_AND_PORT = re.compile(r"[\w.\-]+:\d+(/.*)?|[\w.\-]*localhost")
_CAUSE = re.compile(r"\(Caused by \w+\(['\"](?:\w+\([^)]*\): )?([^'\"]+)['\"]")


def named(variable: str) -> str | None:
    """Return the address in a variable; None where it is unset or blank."""
    return os.environ.get(variable, "").strip() or None


def check_address(variable: str) -> None:
    """Check that MLflow can use the address in a variable, if there is one.

    Raises:
        InputError: its scheme is none of MLflow's, or it names no server or file.
    """
    uri = named(variable)
    if uri and (fault := _fault(uri)):
        raise InputError(f"{variable} is {without_secrets(uri)}, {fault}")


def missing_driver(variable: str, uri: str, error: ImportError) -> InputError:
    """Return the sentence for a database whose driver cannot be imported."""
    module = error.name or "a library"
    fault = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
    cure = CURES.get(module, f".venv/bin/pip install {module}")
    return InputError(f"MLflow at {without_secrets(uri)} needs {module}, which {fault}: {cure}, or fix {variable}")


def separate_passwords() -> None:
    """Take passwords out of the addresses in the environment, and pass them in the variables of the drivers.

    Raises:
        InputError: two MLflow servers have two users: there is one variable for both.
    """
    found = set()
    for variable in (TRACKING, REGISTRY):
        parts = _WITH_PASSWORD.fullmatch(named(variable) or "")
        if parts is None:
            continue
        scheme, user, password, rest = parts[1], parts[2], unquote(parts[3]), parts[4]
        if scheme in WEB and user:
            os.environ[variable] = f"{scheme}://{rest}"
            found.add((unquote(user), password))
        # libpq has one password for all addresses; a second one stays in its address.
        elif scheme in FROM_LIBPQ and os.environ.setdefault("PGPASSWORD", password) == password:
            os.environ[variable] = f"{scheme}://{user}@{rest}" if user else f"{scheme}://{rest}"
    if len(found) > 1:
        raise InputError(f"{TRACKING} and {REGISTRY} name two users: use one user in both")
    for user, password in found:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password


def check_connection(uri: str) -> None:
    """Connect to a database once, before MLflow, which tries for minutes whatever the reason is.

    Raises:
        SQLAlchemyError: it refuses user, password or name, or cannot be reached for `SECONDS_TO_CONNECT`.
        ImportError: its driver is not installed.
    """
    if uri.partition("://")[0].partition("+")[0] not in DATABASES:
        return
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError

    engine, until = create_engine(uri), time.monotonic() + SECONDS_TO_CONNECT
    try:
        while True:
            try:
                engine.connect().close()
                return
            except DBAPIError as error:
                if _REFUSAL.search(str(error)) or time.monotonic() > until:
                    raise
            time.sleep(1)
    finally:
        engine.dispose()


def cause(text: str) -> str:
    """Return what happened to a request, from the chain of errors that MLflow quotes in one line."""
    found = _CAUSE.search(text)
    return found[1] if found else text


def _fault(uri: str) -> str | None:
    """Say what is wrong with an address, and the cure; None where nothing is."""
    scheme, separator, rest = uri.partition("://")
    dialect = scheme.partition("+")[0]
    if uri.partition(":")[0] in OF_DATABRICKS:
        return None
    if not separator:
        return _fault_of_bare(uri)
    if dialect in WEB:
        return fault_of_server(uri, EXAMPLE)
    if dialect == "sqlite" and rest.partition("?")[0].strip("/") in ("", ":memory:"):
        return "which names no file, so every command would have a database of its own: write sqlite:////path/mlflow.db"
    return None if dialect in SCHEMES else _fault_of_scheme(dialect)


def _fault_of_bare(uri: str) -> str | None:
    if _HOST_AND_PORT.fullmatch(uri):
        return f"which has no scheme: write http://{uri}"
    if uri.startswith(tuple(f"{each}:" for each in SCHEMES)):
        return f"which has no // after the scheme: write it as in {EXAMPLE}"
    return _fault_of_scheme("file")


def _fault_of_scheme(dialect: str) -> str | None:
    if dialect == "file":
        return None if "MLFLOW_ALLOW_FILE_STORE" in os.environ else NO_FOLDER
    meant = f", so write {MEANT[dialect]}://" if dialect in MEANT else ""
    return f"which has a scheme that MLflow does not know: it knows {', '.join(SCHEMES)}{meant}"
