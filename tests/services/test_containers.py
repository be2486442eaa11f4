"""The programs of the image against real servers: the job that makes databases and buckets, and MLflow with users."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from infra.containers.storage import DATABASES
from infra.services import s3
from infra.services.server import Server, answers
from infra.services.services import Services
from tests.conftest import ROOT
from tests.services.conftest import finished, free_port, start, trueline

USER, PASSWORD = "ada", "a password of sixteen characters or more"


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


@pytest.fixture
def address(up: Services, given: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of the server, whose databases the storage job has made."""
    job(given)
    port = free_port()
    database = f"postgresql://mlflow:{given['MLFLOW_DATABASE_PASSWORD']}@127.0.0.1:{up.ports['postgres']}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_"))},
        **{name: value for name, value in given.items() if name.startswith("AWS_")},
        "TMPDIR": str(tmp_path),
        "MLFLOW_LISTEN": "127.0.0.1",
        "MLFLOW_LISTEN_PORT": str(port),
        "MLFLOW_SERVER_WORKERS": "1",
        "MLFLOW_BACKEND_STORE_URI": f"{database}/mlflow",
        "MLFLOW_AUTH_DATABASE_URI": f"{database}/mlflow_users",
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs forms",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{s3.BUCKETS[1]}/users",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    address, script = f"http://127.0.0.1:{port}", str(ROOT / "infra/containers/mlflow.sh")
    log = tmp_path / "mlflow-with-users.log"
    server = Server(
        name="MLflow",
        command=["sh", script],
        environment=environment,
        log=log,
        is_ready=lambda: answers(f"{address}/health"),
    )
    try:
        server.start()
        yield address
    finally:
        server.stop()


@pytest.mark.timeout(600)
def test_a_checkout_names_its_user(address: str, checkout: Path) -> None:
    named = {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    assert re.search(r"^evaluate +restored ", trueline("sync", environment=named), flags=re.MULTILINE)
    assert 'trueline_metrics_errors{source="registry"} 0.0\n' in trueline("metrics", environment=named)

    refused = finished(start("why", "champion", environment={**named, "MLFLOW_TRACKING_PASSWORD": "another"}))
    assert refused.returncode == 2
    assert "give user and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused.stdout
