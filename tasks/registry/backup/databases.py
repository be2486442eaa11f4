"""The tracking database in a backup: a SQLite file, or a dump of PostgreSQL by PostgreSQL's own programs."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Literal

from tasks.common.errors import InputError
from tasks.common.files import temporary_folder
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.database import SECONDS_TO_WAIT, database_file, structural_fault
from tasks.registry.mlflow_runs.relocation import relocate
from tasks.registry.promotion.server_lock import TICKET_MODEL_SUFFIX

Kind = Literal["sqlite", "postgresql", "server"]
CONTENTS = {  # what a database has, by what people call it
    "run": "SELECT run_uuid FROM runs",
    "model version": f"SELECT name || ' ' || version FROM model_versions WHERE name NOT LIKE '%{TICKET_MODEL_SUFFIX}'",
}


def database_kind(uri: str) -> Kind:
    """Tell how a tracking database is saved; `server`: where it runs, by the people who run it."""
    if database_file(uri):
        return "sqlite"
    return "postgresql" if uri.startswith(("postgresql:", "postgresql+", "postgres:")) else "server"


def save_database(uri: str, file: Path) -> None:
    """Write a consistent copy of the database behind an address while others use it.

    Raises:
        InputError: PostgreSQL's pg_dump is not there or refuses; the copy is damaged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    source = database_file(uri)
    if source is None:
        _postgresql("pg_dump", uri, ["--format=custom", "--no-owner", f"--file={file}"])
        return
    _copy(source, file)
    if fault := structural_fault(file):
        raise InputError(f"{source} is damaged ({fault}), so there is no backup of it: run trueline doctor")


def load_database(file: Path, uri: str, moved: tuple[str, str], aside: Path) -> None:
    """Put a saved database where an address says, complete or not at all.

    Args:
        file: as `save_database` wrote it.
        uri: the address.
        moved: addresses of the folder of the checkout, as it was and as it is: artifacts lie in it.
        aside: folder for the SQLite file that is there now.

    Raises:
        InputError: PostgreSQL's pg_restore is not there or refuses.
    """
    target = database_file(uri)
    if target is None:
        _postgresql(
            "pg_restore", uri, ["--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error"], file
        )
        relocate(uri, *moved)
        return
    with temporary_folder(target) as folder:
        draft = folder / target.name
        shutil.copyfile(file, draft)
        relocate(f"sqlite:///{draft}", *moved)
        if target.exists():
            aside.mkdir(parents=True, exist_ok=True)
            if structural_fault(target) is None:
                _copy(target, aside / target.name)
                _copy(draft, target)  # in one transaction: a server that has the file open goes on with the new content
                return
            shutil.copyfile(target, aside / target.name)
        draft.replace(target)


def unknown_to_backup(file: Path, uri: str) -> str | None:
    """Say what the database at an address has, and a saved one lacks; None if it has nothing of its own.

    Raises:
        InputError: the database at the address cannot be asked.
    """
    target = database_file(uri)
    if target is None:
        return _content_of_server(uri)
    if not target.exists() or target.stat().st_size == 0 or structural_fault(target):
        return None
    ours, saved = _contents(target), _contents(file)
    found = {name: len(ours[name] - saved[name]) for name in CONTENTS}
    return _counted(found) if any(found.values()) else None


def _copy(source: Path, target: Path) -> None:
    """Copy a database that others may use into one that others may use."""
    with (
        closing(sqlite3.connect(source, timeout=SECONDS_TO_WAIT)) as used,
        closing(sqlite3.connect(target, timeout=SECONDS_TO_WAIT)) as copy,
    ):
        used.backup(copy)


def _contents(file: Path) -> dict[str, set[str]]:
    with closing(sqlite3.connect(file, timeout=SECONDS_TO_WAIT)) as database:
        tables = {name for [name] in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"runs", "model_versions"} <= tables:
            return {name: set() for name in CONTENTS}
        return {name: {row for [row] in database.execute(query)} for name, query in CONTENTS.items()}


def _content_of_server(uri: str) -> str | None:
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(uri)
        try:
            with engine.connect() as connection:
                if not {"runs", "model_versions"} <= set(inspect(connection).get_table_names()):
                    return None
                found = {name: len(connection.execute(text(query)).all()) for name, query in CONTENTS.items()}
        finally:
            engine.dispose()
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        reason = without_secrets(str(error).splitlines()[0])
        raise InputError(f"MLflow's database {without_secrets(uri)} cannot be asked ({reason}): start it") from error
    return _counted(found) if any(found.values()) else None


def _counted(found: dict[str, int]) -> str:
    return " and ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in found.items() if count)


def _postgresql(program: str, uri: str, options: Iterable[str], *files: Path) -> None:
    """Run a program of PostgreSQL; the password is in its environment, because others see its command."""
    from sqlalchemy.engine import make_url

    if shutil.which(program) is None:
        raise InputError(
            f"MLflow's database is PostgreSQL, and {program} is not on PATH: install PostgreSQL's client programs "
            "(apt-get install postgresql-client), of the server's release or a later one"
        )
    url = make_url(uri)
    address = url._replace(drivername="postgresql", password=None).render_as_string()
    environment = os.environ | ({"PGPASSWORD": str(url.password)} if url.password else {})
    command = [program, *options, f"--dbname={address}", *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = without_secrets((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        raise InputError(f"{program} failed ({reason}): correct MLFLOW_TRACKING_URI, or the access it gives")
