"""An S3 server on loopback: the gateway of JuiceFS over files, with signed requests and ETags."""

import configparser
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra.services.postgres import write_private
from infra.services.server import Server, answers
from tasks.common.errors import InputError

if TYPE_CHECKING:
    from botocore.client import BaseClient

BUCKETS = ("trueline-dvc", "trueline-mlflow")
KEY, SECRET = "aws_access_key_id", "aws_secret_access_key"


def write_keys(file: Path) -> None:
    """Make a key in a file that boto3, DVC and every other client of S3 read (AWS_SHARED_CREDENTIALS_FILE); once."""
    if not file.exists():
        write_private(file, f"[default]\n{KEY} = trueline\n{SECRET} = {secrets.token_hex(20)}\n")


def server(folder: Path, port: int, keys: Path, environment: Mapping[str, str], log: Path) -> Server:
    """Give the server over a file system, which is made where there is none.

    Args:
        folder: where contents and their index are, or will be.
        port: of 127.0.0.1.
        keys: the file of `write_keys`.
        environment: the variables of the process.
        log: where it writes its messages.

    Raises:
        InputError: JuiceFS is not installed, or cannot make its file system.
    """
    program = Path(sys.executable).parent / "juicefs"
    if not program.exists():
        raise InputError("the S3 server is not installed: make services installs it (requirements-services.lock)")
    index = f"sqlite3://{folder / 'index.db'}"
    if not (folder / "made").exists():
        folder.mkdir(exist_ok=True)
        options = ["--storage", "file", "--bucket", f"{folder / 'contents'}/", "--trash-days", "0", "--no-color"]
        made = subprocess.run(
            [str(program), "format", *options, index, "trueline"], text=True, capture_output=True, check=False
        )
        if made.returncode:
            raise InputError(f"the S3 server cannot make its folder {folder}: {made.stderr.strip().splitlines()[-1]}")
        (folder / "made").touch()
    key, secret = read_keys(keys)
    quiet = ["--no-usage-report", "--no-banner", "--no-color", "--log", str(log), "--cache-dir", "memory"]
    return Server(
        name="S3",
        # Without --keep-etag an object has no ETag, and DVC fails.
        command=[str(program), "gateway", "--multi-buckets", "--keep-etag", *quiet, index, f"127.0.0.1:{port}"],
        environment={**environment, "MINIO_ROOT_USER": key, "MINIO_ROOT_PASSWORD": secret},
        log=log,
        is_ready=lambda: answers(f"http://127.0.0.1:{port}/minio/health/live"),
    )


def read_keys(file: Path) -> tuple[str, str]:
    """Give key and secret."""
    found = configparser.ConfigParser()
    found.read(file, encoding="utf-8")
    return found["default"][KEY], found["default"][SECRET]


def create_buckets(port: int, keys: Path) -> None:
    """Create the buckets of DVC and MLflow, where they do not exist."""
    storage = client(port, keys)
    existing = {each["Name"] for each in storage.list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in existing:
            storage.create_bucket(Bucket=bucket)


def client(port: int, keys: Path) -> "BaseClient":
    """Give boto3's client for the server."""
    import boto3
    from botocore.config import Config

    key, secret = read_keys(keys)
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(proxies={}),
    )
