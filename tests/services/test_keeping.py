"""With PostgreSQL behind MLflow, and S3 behind MLflow and DVC: what gc and a restore leave is all that is kept."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.gc import collect_garbage
from infra.services import postgres, s3
from infra.services.services import Services
from tasks.registry.backup.load import restore
from tasks.registry.backup.save import backup
from tasks.registry.export.folders import export
from tasks.registry.lineage.explain import history, why
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import commit, dvc, run_again
from tests.services.conftest import champions

SAVED = Path("../saved")
LOST = (".dvc/cache", "models", "data", "metrics", "curves", "reports", "decisions.jsonl", "opponent.json")
EMPTY = "DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner"


def keys(up: Services, bucket: str) -> list[str]:
    """What lies in a bucket, of all checkouts."""
    pages = s3.client(up.ports["s3"], up.keys).get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def in_remote(up: Services) -> set[str]:
    """The hashes in DVC's remote."""
    return {"".join(key.split("/")[-2:]) for key in keys(up, s3.BUCKETS[0]) if "/md5/" in key}


def weights(up: Services) -> int:
    """How many files of weights MLflow has in S3."""
    return sum(key.endswith("/content.txt") for key in keys(up, s3.BUCKETS[1]))


@pytest.fixture
def three_versions(checkout: Path) -> list[str]:
    """Versions 1 to 3, each champion in its turn, and their hashes."""
    for content in (1, 2, 3):
        run_again(content=content)
        assert champion.promote(load_params())["promoted"]
        dvc("push", "--run-cache", cwd=checkout)
        commit(checkout, f"version {content}")
    return [json.loads(line)["policy"]["md5"] for line in Path("decisions.jsonl").read_text().splitlines()]


def exported(folder: str) -> list[bytes]:
    """The weights of every version that is kept, as `trueline export` writes them."""
    names = sorted(champions())
    for name in names:
        export(load_params(), name, Path(folder, name))
    return [Path(folder, name, "content.txt").read_bytes() for name in names]


def test_what_is_kept_survives_gc_and_the_loss_of_the_checkout_and_of_the_database(
    up: Services, checkout: Path, three_versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = three_versions
    assert {first, second, third} <= in_remote(up)
    there = weights(up)
    collect_garbage(load_params(), "champion,previous", 1, yes=True, now=datetime.now(UTC) + timedelta(days=3))
    assert {first, second, third} & in_remote(up) == {second, third}
    assert weights(up) == there - 4  # the first policy and its reward model, two files each
    before = exported("../exported"), why(load_params(), "champion"), history(load_params()), champions()

    server, programs = os.environ["MLFLOW_TRACKING_URI"], Path(postgres.program("pg_dump")).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PGPASSFILE", str(up.passwords))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://mlflow@{up.database('mlflow')}")
    saved = backup(load_params(), SAVED)
    assert (saved["database"], saved["aliases"], saved["unreachable"]) == ("postgresql", before[-1], [])
    for name in LOST:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
    postgres.run_sql(up.ports["postgres"], up.passwords, EMPTY, database="mlflow")
    restored = restore(SAVED, overwrite=False, fetch=True)
    assert (restored["aliases"], restored["record"], restored["unreachable"]) == (before[-1], "restored", [])

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert (exported("../again"), why(load_params(), "champion"), history(load_params()), champions()) == before
    assert champion.rollback(load_params(), "it flatters")["champion"] == 2
