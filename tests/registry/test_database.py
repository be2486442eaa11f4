"""An MLflow database that is half made, damaged, locked or another's is repaired or reported; no record is lost."""

import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.lineage import sync
from tasks.registry.mlflow_runs import database
from tasks.registry.mlflow_runs.store import open_store
from tasks.settings.params import load_params
from tests.registry.conftest import aliases, shell

FILE = Path("mlflow.db")
OPEN = "from tasks.registry.mlflow_runs.store import open_store; print(open_store('trueline').experiment_id)"
# The process is gone after the first tables, before MLflow's migrations.
KILLED = f"""
import os, signal
import mlflow.store.db.utils as made
made._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
{OPEN}
"""


def execute(*statements):
    with closing(sqlite3.connect(FILE)) as opened, opened:
        for statement in statements:
            opened.execute(statement)


def half_made():
    """Leave what MLflow leaves when it is killed in its first moments."""
    from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
    from mlflow.store.tracking.dbmodels.initial_models import Base

    FILE.unlink()
    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{FILE.absolute()}")
    Base.metadata.create_all(engine)
    engine.dispose()


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_makes_the_database_leaves_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not FILE.exists()
    assert open_store("trueline").client.search_registered_models() == []


@pytest.mark.slow
def test_two_checkouts_that_make_one_database_at_once_both_use_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    started = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", OPEN]
        started.append(subprocess.Popen(command, cwd=tmp_path / name, stdout=subprocess.PIPE, text=True))
    assert [process.communicate()[0] for process in started] == ["1\n", "1\n"]


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "no byte", "half"])
def test_what_holds_nothing_is_made_anew(tracked, caplog, left):
    if left == "half":
        half_made()
    else:
        FILE.write_bytes(b"")
        Path("mlflow.db-journal").write_bytes(b"of another database")
    if left == "nothing":
        FILE.unlink()
    assert open_store("trueline").client.search_registered_models() == []
    message = "is incomplete and empty" if left == "half" else "mlflow.db-journal is left of a deleted database"
    assert message in caplog.text
    assert not list(tracked.glob(".mlflow.db.*"))


def half(content):
    return content[: len(content) // 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"these are notes\n" * 500, "file is not a database"),
        (half, "malformed|not ok|invalid|btree|Tree"),
        (lambda content: content[:16] + bytes(84) + content[100:], "malformed|not a database"),
    ],
)
def test_a_damaged_database_is_reported_and_the_cure_brings_all_back(challenged, spoil, message):
    FILE.write_bytes(spoil(FILE.read_bytes()))
    damaged = FILE.read_bytes()
    with pytest.raises(InputError, match=rf"mlflow\.db is not an intact database of MLflow \(.*({message})") as seen:
        open_store("trueline")
    [cure] = re.findall(r"\((mv .*?)\)", str(seen.value))
    shell("sh", "-c", cure, cwd=challenged)
    sync.sync(load_params())
    assert aliases()["trueline-policy"]["champion"] == 1
    assert Path("mlflow.db.broken").read_bytes() == damaged


def test_a_database_of_another_program_is_not_written_to(tracked):
    FILE.unlink()
    execute("CREATE TABLE notes (text)")
    before = FILE.read_bytes()
    with pytest.raises(InputError, match="its tables are not MLflow's"):
        open_store("trueline")
    assert FILE.read_bytes() == before


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("b7e2c1a4d9f3", r"the schema of an older MLflow \(b7e2c1a4d9f3\): .*mlflow db upgrade sqlite:///"),
        ("0123456789ab", r"does not know \(0123456789ab\): a newer one has written it"),
    ],
)
def test_a_database_of_another_mlflow_is_reported_and_left_as_it_is(tracked, revision, message):
    execute(f"UPDATE alembic_version SET version_num = '{revision}'")
    before = FILE.read_bytes()
    with pytest.raises(InputError, match=message):
        open_store("trueline")
    assert FILE.read_bytes() == before


def test_a_database_that_another_process_holds_is_reported_as_locked(tracked, monkeypatch):
    monkeypatch.setattr(database, "SECONDS_TO_WAIT", 0.1)
    with closing(sqlite3.connect(FILE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"mlflow\.db is locked by another process: wait for it"):
            open_store("trueline")


def test_a_folder_in_its_place_is_reported(tracked):
    FILE.unlink()
    FILE.mkdir()
    with pytest.raises(InputError, match=r"mlflow\.db is not a file"):
        open_store("trueline")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("database or disk is full", "no space left on the disk of .*: free some"),
        ("attempt to write a readonly database", "no permission for"),
        ("unable to open database file", "no permission for"),
        ("database is locked", "is locked by another process"),
        ("database disk image is malformed", "is not an intact database"),
    ],
)
def test_what_sqlite_says_becomes_a_sentence_with_its_cure(tmp_path, fault, message):
    assert re.search(message, database.sqlite_fault(f"sqlite:///{tmp_path}/mlflow.db", fault) or "")
    assert database.sqlite_fault("http://127.0.0.1:5000", fault) is None


def test_a_folder_that_mlflow_cannot_store_is_refused(tmp_path, monkeypatch):
    """Its statement that makes the first experiment writes a path as Python does, and not as SQL."""
    folder = tmp_path / "a 'b' \"c\""
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="both kinds of quotes in its name, which MLflow cannot store: rename the"):
        open_store("trueline")
    assert list(folder.iterdir()) == []
