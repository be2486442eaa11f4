"""The tables of MLflow and Prefect after an upgrade of the libraries: migrated when asked to, after a dump."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from infra.services import postgres
from tasks.common.errors import InputError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

# Where each library keeps its migrations, and those for PostgreSQL.
MIGRATIONS = {
    "mlflow": ("store/db_migrations", "versions"),
    "prefect": ("server/database/_migrations", "versions/postgresql"),
}
REVISION = """
SELECT to_regclass('alembic_version') IS NOT NULL AS found \\gset
\\if :found
SELECT version_num FROM alembic_version;
\\endif
"""


class Database(NamedTuple):
    """A database of one of the two libraries, and how its superuser reaches it."""

    library: str  # mlflow or prefect
    name: str
    port: int
    passwords: Path


def check(database: Database, cure: str) -> None:
    """Make sure that a database has the tables of the installed library, or none yet.

    Raises:
        InputError: it has those of another version; `cure` says what migrates an older one.
    """
    revision = revision_of(database)
    if revision in ("", newest(database.library)):
        return
    installed = f"{database.library} {version(database.library)}"
    if not is_known(database.library, revision):
        raise InputError(
            f"the database {database.name} has tables that {installed} does not know ({revision}): a newer one has "
            "written them, so install that"
        )
    raise InputError(
        f"the database {database.name} has the tables of an older {database.library} ({revision}), and {installed} "
        f"would change them: {cure}"
    )


def is_older(database: Database) -> bool:
    """Tell whether a database has tables that the installed library would migrate."""
    revision = revision_of(database)
    return bool(revision) and revision != newest(database.library) and is_known(database.library, revision)


def dump(database: Database, folder: Path) -> Path:
    """Write a database to a file that pg_restore reads; gives the file, named after database and revision.

    Raises:
        InputError: PostgreSQL refuses.
    """
    folder.mkdir(exist_ok=True)
    file = folder / f"{database.name}-{revision_of(database)}.dump"
    options = ["--format=custom", f"--file={file}", "-h", "127.0.0.1", "-p", str(database.port)]
    done = subprocess.run(
        [postgres.program("pg_dump"), *options, "-U", postgres.SUPERUSER, database.name],
        env={**os.environ, "PGPASSFILE": str(database.passwords)},
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"no dump of {database.name} ({done.stderr.strip()}), so nothing was migrated")
    return file


def migrate(database: Database, address: str, environment: Mapping[str, str]) -> None:
    """Bring the tables of a database to the installed library's, by the library's own command.

    Args:
        database: what is to be migrated.
        address: as the library is given it, without a password.
        environment: of the server that uses it.

    Raises:
        InputError: the library fails; the database is as it was, because a migration is one transaction.
    """
    command = {
        "mlflow": ["mlflow", "db", "upgrade", address],
        "prefect": ["prefect", "server", "database", "upgrade", "--yes"],
    }[database.library]
    done = subprocess.run(
        [sys.executable, "-m", *command], env=dict(environment), text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise InputError(f"{database.name} could not be migrated: {done.stderr.strip().splitlines()[-1]}")


def revision_of(database: Database) -> str:
    """Give the revision of a database's tables; empty where there are none."""
    return postgres.run_sql(database.port, database.passwords, REVISION, database=database.name).strip()


def newest(library: str) -> str:
    """Give the revision of the installed library."""
    return str(_scripts(library).get_current_head())


def is_known(library: str, revision: str) -> bool:
    """Tell whether the installed library can migrate from a revision."""
    from alembic.util import CommandError

    try:
        return _scripts(library).get_revision(revision) is not None
    except CommandError:
        return False


def _scripts(library: str) -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    found = find_spec(library)
    assert found and found.origin
    folder, versions = MIGRATIONS[library]
    place = Path(found.origin).parent / folder
    return ScriptDirectory(str(place), version_locations=[str(place / versions)])
