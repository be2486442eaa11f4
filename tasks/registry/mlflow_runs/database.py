"""The SQLite file behind MLflow: created under another name and renamed when complete; faults are reported with a cure.

MLflow creates a database in place, in dozens of steps. A process that is killed in between, or two that start at once,
leave a database that no later step can repair. MLflow also adds missing tables to an older database without a copy.
"""

import logging
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

from tasks.common.errors import InputError
from tasks.common.files import STATE
from tasks.registry.mlflow_runs.schema import is_known, newest

COMPANIONS = ("-journal", "-wal", "-shm")  # what SQLite writes beside a database
SECONDS_TO_WAIT = 20.0  # for another writer, as in MLflow
# The tables that all others of MLflow refer to; a complete database has at least one experiment.
ROOTS = ("experiments", "registered_models")
logger = logging.getLogger(__name__)


@contextmanager
def prepared(uri: str, checkout: Path) -> Iterator[None]:
    """Check a SQLite database of MLflow, or create it, and let one process at a time open it.

    Args:
        uri: address of the database; one that is not a SQLite file is left to its server.
        checkout: the folder whose own database has its lock in `.trueline`; another has it beside the file.

    Raises:
        InputError: the file is damaged, locked, has another schema, or cannot be created, or the checkout's name
            cannot be stored.
    """
    file = database_file(uri)
    if file is None:
        yield
        return
    if {"'", '"'} <= set(str(checkout)):
        raise InputError(
            f"{checkout} has both kinds of quotes in its name, which MLflow cannot store: rename the folder"
        )
    try:
        lock = checkout / STATE / "mlflow.lock" if file.parent == checkout else file.with_name(f".{file.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            _prepare(file, uri)
            yield
    except sqlite3.OperationalError as error:
        raise InputError(_access_fault(file, str(error))) from error


def sqlite_fault(uri: str, fault: str) -> str | None:
    """Return the message for a fault of a SQLite database, with its cure; None for other databases."""
    file = database_file(uri)
    return _access_fault(file, fault) if file else None


def structural_fault(file: Path) -> str | None:
    """Return why a file is not an intact SQLite database; None if it is one.

    Raises:
        OperationalError: SQLite cannot read it, because of a lock or the disk.
    """
    try:
        with closing(sqlite3.connect(file, timeout=SECONDS_TO_WAIT)) as database:
            [[fault]] = database.execute("PRAGMA quick_check(1)").fetchall()
            return None if fault == "ok" else str(fault)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for other databases and servers."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # a port that is not a number
        return None
    is_file = url.drivername.startswith("sqlite") and url.database not in (None, "", ":memory:")
    return Path(str(url.database)).absolute() if is_file else None


def _prepare(file: Path, uri: str) -> None:
    if not file.exists() or file.stat().st_size == 0:
        _make(file)
        return
    if not file.is_file():
        raise InputError(f"{file} is not a file, so it cannot be a database: move it away and run again")
    revision, is_empty = _inspect(file)
    if revision == newest():
        return
    if is_empty:
        logger.warning("%s is incomplete and empty: it is created again", file)
        _make(file)
    elif revision is not None and is_known(revision):
        raise InputError(
            f"{file} has the schema of an older MLflow ({revision}): stop what uses it, make a copy "
            f"(cp {_quoted(file)} {_quoted(file, revision)}) and run mlflow db upgrade {shlex.quote(uri)}"
        )
    else:
        raise InputError(
            f"{file} has a schema that this MLflow does not know ({revision}): a newer one has written it, so install "
            "that (make clean, then make run), or name another database in MLFLOW_TRACKING_URI"
        )


def _inspect(file: Path) -> tuple[str | None, bool]:
    """Return the revision of a database's schema, and whether the database is empty.

    Raises:
        InputError: it is damaged.
    """
    if fault := structural_fault(file):
        raise InputError(_damaged(file, fault))
    try:
        with closing(sqlite3.connect(file, timeout=SECONDS_TO_WAIT)) as database:
            tables = {name for [name] in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and not tables & {*ROOTS, "alembic_version"}:
                raise InputError(_damaged(file, "its tables are not MLflow's"))
            revisions = (
                database.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else ()
            )
            revision = next((str(number) for [number] in revisions), None)
            has_rows = any(database.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in tables & {*ROOTS})
            return revision, not has_rows
    except sqlite3.OperationalError:  # of the disk or a lock, not of the content
        raise
    except sqlite3.DatabaseError as error:
        raise InputError(_damaged(file, str(error))) from error


def _make(file: Path) -> None:
    """Create a database under another name, and rename it when it is complete."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry
    from sqlalchemy.exc import DBAPIError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        draft = Path(folder, file.name)
        engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{draft}")
        try:
            _initialize_tables(engine)
        except DBAPIError as error:
            raise InputError(_access_fault(file, str(error.orig))) from error
        finally:
            engine.dispose()
        for ending in COMPANIONS:  # of a deleted database: SQLite would apply them to the new one
            companion = file.with_name(file.name + ending)
            if companion.exists():
                companion.replace(companion.with_name(f"{companion.name}.old"))
                logger.warning("%s is left of a deleted database, and is now %s.old", companion, companion.name)
        draft.replace(file)


def _damaged(file: Path, fault: str) -> str:
    aside = f"mv {_quoted(file)} {_quoted(file, 'broken')}"
    return (
        f"{file} is not an intact database of MLflow ({fault}): move it away ({aside}) and run trueline sync, which "
        "restores versions and aliases from the decision log, and the runs of dvc.lock from files"
    )


def _quoted(file: Path, ending: str = "") -> str:
    return shlex.quote(f"{file}.{ending}" if ending else str(file))


def _access_fault(file: Path, fault: str) -> str:
    if "locked" in fault or "busy" in fault:
        return f"{file} is locked by another process: wait for it or end it (see fuser {_quoted(file)}), then run again"
    if "is full" in fault:
        return f"no space left on the disk of {file}: free some and run again"
    if "readonly" in fault or "unable to open" in fault:
        return f"no permission for {file} or its folder: grant it or run as its owner"
    if "malformed" in fault or "not a database" in fault:
        return _damaged(file, fault)
    return f"{file} cannot be used ({fault}): repair it, or name another database in MLFLOW_TRACKING_URI"
