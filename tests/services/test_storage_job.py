"""The job of compose.yaml and infra/kubernetes that makes databases and buckets, against the real servers."""

import os
import subprocess
import sys

import psycopg2
import pytest

from infra.containers.storage import DATABASES
from infra.services import s3
from infra.services.services import Services
from tests.conftest import ROOT


@pytest.fixture
def given(up: Services) -> dict[str, str]:
    """The environment of the job; the roles exist, and keep their passwords."""
    lines = [line.split(":") for line in up.passwords.read_text().splitlines()]
    passwords = {role: password for *_, role, password in lines}
    key, secret = s3.read_keys(up.keys)
    return {
        "POSTGRES_HOST": "127.0.0.1",
        "PGPORT": str(up.ports["postgres"]),
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": passwords["postgres"],
        "MLFLOW_DATABASE_PASSWORD": passwords["mlflow"],
        "PREFECT_DATABASE_PASSWORD": passwords["prefect"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{up.ports['s3']}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "BUCKETS": f"{s3.BUCKETS[0]} made-by-the-job",
    }


def job(given: dict[str, str]) -> str:
    command = [sys.executable, str(ROOT / "infra/containers/storage.py")]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def connect(given: dict[str, str], role: str, database: str):
    password = given[f"{role.upper()}_DATABASE_PASSWORD"]
    return psycopg2.connect(host="127.0.0.1", port=given["PGPORT"], user=role, password=password, dbname=database)


def test_what_is_missing_is_made_once_and_belongs_to_its_owner(up: Services, given: dict[str, str]) -> None:
    assert job(given) == "storage: made databases ['mlflow_users'] and buckets ['made-by-the-job']\n"
    assert job(given) == "storage: made databases [] and buckets []\n"

    for database, owner in DATABASES.items():
        connection = connect(given, owner, database)
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE made_by_the_owner (number integer)")
            cursor.execute("DROP TABLE made_by_the_owner")
        connection.close()
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        connect(given, "prefect", "mlflow_users")
    assert "made-by-the-job" in {each["Name"] for each in s3.client(up.ports["s3"], up.keys).list_buckets()["Buckets"]}
