"""Tables of an older MLflow or Prefect: refused with a sentence, then dumped, migrated and used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from infra.services import postgres, upgrades
from infra.services.services import Services
from infra.services.upgrades import Database
from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs import schema
from tasks.registry.mlflow_runs.store import open_store

MLFLOW_BEFORE = "75868b020152"  # each the one before the newest when this was written: they stay known
PREFECT_BEFORE = "c8d5f2a71b3e"
CURE = "migrate it"


def made(up: Services, library: str, name: str) -> tuple[Database, str]:
    """An empty database, and the address that the library takes."""
    postgres.run_sql(up.ports["postgres"], up.passwords, f"CREATE DATABASE {name} OWNER {library}")
    return Database(library, name, up.ports["postgres"], up.passwords), f"{library}@{up.database(name)}"


def older_mlflow(address: str) -> None:
    """The tables of an older MLflow, with an experiment."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = create_engine(address)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = _get_alembic_config(address)
        config.attributes["connection"] = connection
        command.upgrade(config, MLFLOW_BEFORE)
        connection.execute(
            text("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'kept', 'active')")
        )
    engine.dispose()


def test_mlflow_is_not_migrated_unasked(up: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database, address = made(up, "mlflow", "older")
    address = f"postgresql://{address}"
    monkeypatch.setenv("PGPASSFILE", str(up.passwords))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    older_mlflow(address)
    with pytest.raises(InputError) as refused:
        open_store("kept")
    assert str(refused.value) == (
        f"the database of MLFLOW_TRACKING_URI ({without_secrets(address)}) has the schema of an older MLflow "
        f"({MLFLOW_BEFORE}), and this one would change it for everybody: end what uses it, keep pg_dump "
        '--format=custom --file=mlflow.dump "$MLFLOW_TRACKING_URI", run mlflow db upgrade "$MLFLOW_TRACKING_URI", and '
        "start again"
    )
    with pytest.raises(InputError, match=rf"older mlflow \({MLFLOW_BEFORE}\), and mlflow [\d.]+ would .*: {CURE}$"):
        upgrades.check(database, CURE)

    # What the sentence says.
    programs = f"{Path(postgres.program('pg_dump')).parent}{os.pathsep}{os.environ['PATH']}"
    for command in str(refused.value).partition("keep ")[2].removesuffix(", and start again").split(", run "):
        subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": programs}, capture_output=True)
    assert upgrades.revision_of(database) == schema.newest()
    assert open_store("kept").experiment_id == "7"

    postgres.run_sql(up.ports["postgres"], up.passwords, "CREATE DATABASE restored OWNER mlflow")
    options = ["--no-owner", "-h", "127.0.0.1", "-p", str(up.ports["postgres"]), "-U", "mlflow", "-d", "restored"]
    subprocess.run([postgres.program("pg_restore"), *options, "mlflow.dump"], check=True)
    assert upgrades.revision_of(database._replace(name="restored")) == MLFLOW_BEFORE


def test_tables_of_a_newer_mlflow(up: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database, address = made(up, "mlflow", "newer")
    monkeypatch.setenv("PGPASSFILE", str(up.passwords))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://{address}")
    tables = "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('fffffffffff0');"
    tables += "ALTER TABLE alembic_version OWNER TO mlflow"
    postgres.run_sql(up.ports["postgres"], up.passwords, tables, database="newer")
    with pytest.raises(InputError, match=r"has a schema that this MLflow does not know .*: a newer one has written it"):
        open_store("any")
    with pytest.raises(InputError, match=r"has tables that mlflow .* does not know .*: a newer one has written them"):
        upgrades.check(database, CURE)


def test_prefect_is_migrated_after_a_dump(up: Services, tmp_path: Path) -> None:
    database, address = made(up, "prefect", "older_prefect")
    asked = {"PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}", "PREFECT_HOME": str(tmp_path)}
    environment = {**up.prefect.environment, **asked}
    upgrades.check(database, CURE)  # without tables, they are the library's to make
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes", "-r", PREFECT_BEFORE]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert upgrades.is_older(database)
    with pytest.raises(InputError, match=rf"older prefect \({PREFECT_BEFORE}\), and prefect [\d.]+ would .*: {CURE}$"):
        upgrades.check(database, CURE)
    written = upgrades.dump(database, tmp_path / "dumps")
    assert written.name == f"older_prefect-{PREFECT_BEFORE}.dump"
    assert written.read_bytes().startswith(b"PGDMP")
    upgrades.migrate(database, "", environment)
    upgrades.check(database, CURE)
