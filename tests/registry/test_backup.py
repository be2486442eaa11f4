"""A backup, all destroyed, a restore: everything answers as before, here or in another folder."""

import json
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.model_registry import sqlalchemy_store as of_models
from mlflow.store.tracking import sqlalchemy_store as of_runs
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from tasks.common.errors import InputError
from tasks.registry.backup import load
from tasks.registry.backup.databases import database_kind, load_database, save_database, unknown_to_backup
from tasks.registry.backup.load import restore
from tasks.registry.backup.manifest import MANIFEST
from tasks.registry.backup.save import backup
from tasks.registry.export.folders import export
from tasks.registry.lineage import sync
from tasks.registry.lineage.explain import history, why
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import past_decisions
from tasks.settings.params import load_params
from tests.registry.conftest import aliases, change_params, commit, dvc, shell

SAVED = Path("../saved")
LOST = ("mlflow.db", "mlruns", ".dvc/cache", "models", "data", "metrics", "reports", "decisions.jsonl", "opponent.json")
POSTGRES = "postgresql+psycopg://ada:secret@db.example:5433/mlflow?sslmode=require"


class Killed(BaseException):
    """The process is gone: nothing of the program may catch it."""


def save():
    return backup(load_params(), SAVED)


def destroy(*names):
    for name in names or LOST:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
    for each in (of_runs.SqlAlchemyStore, of_models.SqlAlchemyStore):
        for engine in each._engine_map.values():
            engine.dispose()  # as where another process restores
    _artifact_repos_cache.clear()


def answers():
    return why(load_params(), "champion"), why(load_params(), "previous"), history(load_params()), aliases()


def files_here():
    kept = [path for path in Path().rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path: path.read_bytes() for path in kept if ".trueline" not in path.parts}


@pytest.fixture
def pushed(own):
    """Version 2 is champion and 1 was before it; the remote has both."""
    assert champion.promote(load_params())["promoted"]
    dvc("remote", "add", "-d", "store", "../remote", cwd=own)
    dvc("push", "-q", "--run-cache", cwd=own)  # of dvc.lock alone
    assert any(
        "previous (version 1)" in sentence for sentence in backup(load_params(), Path("../first"))["unreachable"]
    )
    assert backup(load_params(), Path("../second"), push=True)["unreachable"] == []
    commit(own)
    return own


@pytest.mark.slow
@pytest.mark.parametrize("where", [".", "../elsewhere"], ids=["here", "in another folder"])
def test_the_drill(pushed, monkeypatch, where):
    before, record = answers(), {name: Path(name).read_bytes() for name in ("dvc.lock", "params.yaml")}
    saved = save()
    assert (saved["aliases"], saved["notes"], saved["unreachable"]) == ({"champion": 2, "previous": 1}, [], [])
    destroy()
    if where != ".":
        shell("git", "clone", "-q", ".", where, cwd=".")
        monkeypatch.chdir(where)
        pushed.rename(pushed.with_name("lost"))
    fetches = where != "."
    restored = restore(SAVED, overwrite=False, fetch=fetches)
    assert Path(".dvc/cache/files/md5").exists() == fetches
    assert restored["aliases"] == {"champion": 2, "previous": 1}
    assert (restored["record"], restored["replaced"], restored["unreachable"]) == ("restored", None, [])
    assert answers() == before
    assert record == {name: Path(name).read_bytes() for name in record}
    assert Path(before[0]["card"]).exists()

    assert champion.rollback(load_params(), "it flatters")["champion"] == 1  # its weights come from the remote
    export(load_params(), "champion", Path("exported"))
    assert restore(SAVED, overwrite=False, fetch=True)["record"] == "newer here"  # for it has the rollback
    assert sync.sync(load_params())["alarms"] == []
    assert len([*Path("mlruns").glob("**/model/content.txt")]) == 4  # MLflow loads both versions with their rewards


@pytest.mark.slow
def test_what_the_remote_lacks_is_named(pushed):
    assert save()["unreachable"] == []
    policy = why(load_params(), "champion")["policy"]["md5"]
    listing = Path("../remote/files/md5", policy[:2], policy[2:])
    [entry] = json.loads(listing.read_text())
    file = Path("../remote/files/md5", entry["md5"][:2], entry["md5"][2:])

    def faults():
        shutil.rmtree(SAVED)
        return save()["unreachable"]

    what = f"the policy of champion (version 2) ({policy})"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"?")
    assert faults() == [f"{what} is damaged in DVC's remote store"]
    file.unlink()
    assert faults() == [f"{what} is not, or not all of it, in DVC's remote store"]
    listing.chmod(0o644)
    listing.write_text("[]")
    assert faults() == [f"{what} is damaged in DVC's remote store"]
    assert restore(SAVED, overwrite=False)["unreachable"] == []  # the cache here has it
    dvc("remote", "remove", "store", cwd=".")
    [sentence] = faults()
    assert sentence.startswith("DVC has no default remote, so models and data lie in this checkout alone: name one")


@pytest.mark.slow
def test_a_record_that_is_newer_stays_and_the_database_follows_it(own):
    save()
    assert champion.promote(load_params())["promoted"]
    before = answers()
    destroy("mlflow.db", "mlruns")
    assert restore(SAVED, overwrite=False)["record"] == "newer here"
    assert len(past_decisions()) == 2
    sync.sync(load_params())
    assert aliases() == before[3]
    assert why(load_params(), "champion")["policy"] == before[0]["policy"]


@pytest.mark.slow
def test_nothing_newer_is_replaced_unasked_and_what_is_replaced_is_kept(own):
    save()
    commit(own)
    change_params(evaluate={"max_new_tokens": 9})
    changed = Path("params.yaml").read_bytes()
    with pytest.raises(InputError, match=r"^params\.yaml has changes that are not in git: commit it, or give --over"):
        restore(SAVED, overwrite=False)
    commit(own)  # now git has them
    assert restore(SAVED, overwrite=False)["record"] == "restored"
    assert Path("params.yaml").read_bytes() != changed

    champion.register(load_params())
    with pytest.raises(InputError, match=r"has 2 model versions that the backup of .* would remove: give --overwrite"):
        restore(SAVED, overwrite=False)
    row = json.loads(Path("decisions.jsonl").read_text())
    Path("decisions.jsonl").write_text(json.dumps(row | {"id": "another"}) + "\n")
    before, database = files_here(), Path("mlflow.db").read_bytes()
    destroy("mlflow.db")
    with pytest.raises(InputError, match=r"^decisions\.jsonl here has 1 decisions .* lacks, and lacks 1 of"):
        restore(SAVED, overwrite=False)
    Path("mlflow.db").write_bytes(database)
    assert files_here() == before
    replaced = restore(SAVED, overwrite=True)["replaced"]
    assert json.loads(Path(replaced, "decisions.jsonl").read_text())["id"] == "another"
    assert (
        unknown_to_backup(SAVED / "database/sqlite", f"sqlite:///{Path(replaced, 'mlflow.db')}") == "2 model versions"
    )
    assert unknown_to_backup(SAVED / "database/sqlite", f"sqlite:///{Path('mlflow.db').absolute()}") is None
    assert past_decisions()[0]["id"] == row["id"]


@pytest.mark.slow
def test_a_damaged_backup_touches_nothing(own):
    save()
    destroy()
    before, manifest = files_here(), json.loads((SAVED / MANIFEST).read_text())
    outside = {"../../outside": manifest["files"]["record/dvc.lock"]}
    for content, message in (
        (manifest | {"format": 2}, "has format 2, this release reads 1: use the release that wrote it"),
        (
            manifest | {"files": outside},
            r"is damaged \(Value error, ../../outside is outside the backup\)",
        ),
        ([], "has format None"),
    ):
        (SAVED / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            restore(SAVED, overwrite=True)
    (SAVED / MANIFEST).write_text(json.dumps(manifest))
    database = SAVED / "database/sqlite"
    content = database.read_bytes()
    database.write_bytes(content[:-1] + b"?")
    with pytest.raises(InputError, match=r"database/sqlite is missing or damaged, so nothing was restored"):
        restore(SAVED, overwrite=True)
    with pytest.raises(InputError, match=r"is no backup, it has no manifest.json"):
        restore(Path("nowhere"), overwrite=True)
    assert files_here() == before


@pytest.mark.slow
def test_after_kills_a_restore_finishes_and_a_backup_is_not_there(own, monkeypatch):
    before = (why(load_params(), "champion"), aliases())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("tasks.registry.backup.save.write_manifest", lambda *_: (_ for _ in ()).throw(Killed))
        save()
    assert not SAVED.exists()
    save()
    with pytest.raises(InputError, match="is not an empty folder"):
        save()
    destroy()
    copy, calls = load._copy, [0]

    def dies(source, target):
        calls[0] += 1
        if calls[0] % 4 == 0:  # at another place each time
            raise Killed
        copy(source, target)

    monkeypatch.setattr(load, "_copy", dies)
    for _ in range(2):
        calls[0] %= 4
        with pytest.raises(Killed):
            restore(SAVED, overwrite=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(load, "_copy", copy)
        patch.setattr(load, "_restore_record", lambda *_: (_ for _ in ()).throw(Killed))
        restore(SAVED, overwrite=False)
    with pytest.raises(InputError, match=r"decisions\.jsonl lacks decision .*, which the registry has carried out"):
        champion.register(load_params())
    monkeypatch.setattr(load, "_copy", copy)
    restore(SAVED, overwrite=False)
    assert (why(load_params(), "champion"), aliases()) == before


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder on PATH, into which a test puts stand-ins of PostgreSQL's programs."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755 | stat.S_IXUSR)

    return put


def test_postgresql_is_dumped_by_its_own_program_without_a_password_in_its_command(programs, tmp_path):
    with pytest.raises(InputError, match=r"^MLflow's database is PostgreSQL, and pg_dump is not on PATH: install"):
        save_database(POSTGRES, tmp_path / "a/dump")
    programs("pg_dump", f'echo "$PGPASSWORD" "$@" > {tmp_path}/called')
    save_database(POSTGRES, tmp_path / "a/dump")
    address = "--dbname=postgresql://ada@db.example:5433/mlflow?sslmode=require"
    options = f"--format=custom --no-owner --file={tmp_path}/a/dump"
    assert (tmp_path / "called").read_text() == f"secret {options} {address}\n"

    programs("pg_restore", f'echo "$PGPASSWORD" "$@" > {tmp_path}/called')
    load_database(tmp_path / "a/dump", POSTGRES, ("", ""), tmp_path)
    options = "--clean --if-exists --no-owner --single-transaction --exit-on-error"
    assert (tmp_path / "called").read_text() == f"secret {options} {address} {tmp_path}/a/dump\n"
    programs("pg_restore", 'echo "connection to postgresql://ada:secret@db.example failed" >&2; exit 1')
    with pytest.raises(InputError, match=r"^pg_restore failed \(connection to .*\): correct MLFLOW") as seen:
        load_database(tmp_path / "a/dump", POSTGRES, ("", ""), tmp_path)
    assert "secret" not in str(seen.value)


def test_a_backup_knows_what_it_would_remove(tmp_path):
    saved, here = tmp_path / "saved", tmp_path / "here"
    for file, runs, versions in ((saved, ["a"], [("m", 1)]), (here, ["a", "b"], [("m", 1), ("m", 2), ("m-turns", 9)])):
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE runs (run_uuid TEXT)")
            database.execute("CREATE TABLE model_versions (name TEXT, version INTEGER)")
            database.executemany("INSERT INTO runs VALUES (?)", [(run,) for run in runs])
            database.executemany("INSERT INTO model_versions VALUES (?, ?)", versions)
    assert unknown_to_backup(saved, f"sqlite:///{here}") == "1 run and 1 model version"
    assert unknown_to_backup(here, f"sqlite:///{saved}") is None
    assert unknown_to_backup(here, f"sqlite:///{tmp_path / 'none'}") is None
    kinds = {database_kind(uri) for uri in ("http://127.0.0.1:5000", "mysql://u@h/d")}
    assert (kinds, database_kind(POSTGRES), database_kind("sqlite:///a.db")) == ({"server"}, "postgresql", "sqlite")
