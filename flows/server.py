"""A Prefect server for the length of a block, for runs where no other is named.

Prefect's own temporary server stays behind when its flow is killed; this one does not, and starts faster.
"""

import logging
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from flows.processes import child, end_group
from tasks.common.errors import InputError
from tasks.common.files import STATE
from tasks.registry.mlflow_runs.database import structural_fault

API_URL = "http://127.0.0.1:4200/api"
SERVER_LOG = STATE / "prefect-server.log"
OWN_SERVER = "TRUELINE_OWN_PREFECT_SERVER"  # its address, for this process and those that it starts
STARTUP_SECONDS = 180.0
logger = logging.getLogger(__name__)


@contextmanager
def local_server() -> Iterator[str]:
    """Name a Prefect server in PREFECT_API_URL for a block: the one that is set already, or one of its own on loopback.

    Prefect reads the variable when it is imported, so import it inside the block.

    Raises:
        InputError: the server does not start.
    """
    STATE.mkdir(exist_ok=True)  # Prefect makes its home there, but no folder above it
    if named := named_server():
        check_reachable(named)
        yield named
        return
    _set_damaged_aside()
    port = _free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (
        SERVER_LOG.open("w", encoding="utf-8") as log,
        child([*command, "--no-services", "--no-ui"], stdout=log, stderr=log) as process,
    ):
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_healthy(url, process)
        os.environ["PREFECT_API_URL"] = os.environ[OWN_SERVER] = url
        # Prefect sends its log lines late, when this server is gone; nobody would read them there.
        os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        try:
            yield url
        finally:
            del os.environ["PREFECT_API_URL"], os.environ[OWN_SERVER]
            end_group(process)


def named_server() -> str | None:
    """Give the address of the Prefect server that the environment names; None where it names none."""
    return os.environ.get("PREFECT_API_URL") or None


def has_own_server() -> bool:
    """Tell whether the Prefect server is one that lives as long as this command."""
    return os.environ.get(OWN_SERVER) is not None


def is_healthy(url: str) -> bool:
    """Tell whether a Prefect server answers at this address."""
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def check_reachable(url: str) -> None:
    """Make sure that a Prefect server answers.

    Raises:
        InputError: none does.
    """
    if not is_healthy(url):
        raise InputError(f"no Prefect server answers at {url}: start one with make server, or correct PREFECT_API_URL")


def _set_damaged_aside() -> None:
    """Keep a damaged database of Prefect aside: it has only the pages of earlier runs here, and is made anew."""
    file = Path(os.environ.get("PREFECT_HOME", STATE / "prefect")) / "prefect.db"
    if "PREFECT_API_DATABASE_CONNECTION_URL" in os.environ or not file.exists():
        return
    with suppress(sqlite3.OperationalError):  # another process is at it, and the server will say what it thinks
        if fault := structural_fault(file):
            for found in file.parent.glob(f"{file.name}*"):
                if not found.name.endswith(".broken"):
                    found.replace(found.with_name(f"{found.name}.broken"))
            logger.warning("%s was damaged (%s) and is made anew; what was there is %s.broken", file, fault, file)


def _wait_until_healthy(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while not is_healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise InputError(f"the local Prefect server did not start: {SERVER_LOG} says why; run again")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
