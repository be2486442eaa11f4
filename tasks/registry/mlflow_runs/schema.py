"""The revision of MLflow's tables: a database that others use is not migrated unasked.

MLflow migrates an older database as soon as it opens it directly and misses a table, without a copy and for everybody.
"""

from functools import lru_cache

from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.addresses import DATABASES


def check_schema(variable: str, uri: str) -> None:
    """Make sure that the tables of a database server are this MLflow's, or that there are none yet.

    Args:
        variable: what names the address, without its password.
        uri: the address; one that is not of a database server is left alone.

    Raises:
        InputError: the tables are those of another MLflow.
        SQLAlchemyError: the database cannot be asked.
        ImportError: its driver is not installed.
    """
    dialect = uri.partition("://")[0].partition("+")[0]
    if dialect not in DATABASES:
        return
    from alembic.migration import MigrationContext
    from sqlalchemy import NullPool, create_engine

    with create_engine(uri, poolclass=NullPool).connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision in (None, newest()):
        return
    database = f"the database of {variable} ({without_secrets(uri)})"
    if not is_known(revision):
        raise InputError(
            f"{database} has a schema that this MLflow does not know ({revision}): a newer one has written it, so "
            f"install that, or name another database in {variable}"
        )
    dump = f'pg_dump --format=custom --file=mlflow.dump "${variable}"' if dialect == "postgresql" else "a dump"
    raise InputError(
        f"{database} has the schema of an older MLflow ({revision}), and this one would change it for everybody: end "
        f'what uses it, keep {dump}, run mlflow db upgrade "${variable}", and start again'
    )


@lru_cache(maxsize=1)
def newest() -> str:
    """Return the revision that this MLflow writes."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def is_known(revision: str) -> bool:
    """Return whether this MLflow can migrate from a revision."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    try:
        return ScriptDirectory.from_config(_get_alembic_config("")).get_revision(revision) is not None
    except CommandError:
        return False
