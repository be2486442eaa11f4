"""A Prefect server for the length of a block, for runs where no other is named.

Prefect's own temporary server stays behind when its flow is killed; this one does not, and starts faster.
"""

import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.prefect_server.address import check_reachable, is_healthy, named_server
from tasks.common.children import child, end_group
from tasks.common.errors import InputError
from tasks.common.files import STATE
from tasks.common.network import check_proxies
from tasks.registry.mlflow_runs.database import structural_fault

API_URL = "http://127.0.0.1:4200/api"
DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
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
        os.environ["PREFECT_API_URL"] = named  # without the blanks around it
        check_reachable(named)
        yield named
        return
    check_proxies()
    _set_damaged_aside()
    port = _free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (
        SERVER_LOG.open("w", encoding="utf-8") as log,
        child([*command, "--no-services", "--no-ui"], stdout=log, stderr=log, is_server=True) as process,
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


def has_own_server() -> bool:
    """Tell whether the Prefect server is one that lives as long as this command."""
    return os.environ.get(OWN_SERVER) is not None


def _set_damaged_aside() -> None:
    """Keep a damaged database of Prefect aside: it has only the pages of earlier runs here, and is made anew."""
    file = Path(os.environ.get("PREFECT_HOME", STATE / "prefect")) / "prefect.db"
    if DATABASE in os.environ or not file.exists():
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
            raise InputError(f"the local Prefect server did not start{_reason()}: {SERVER_LOG} says more; {_cure()}")
        time.sleep(0.1)


def _reason() -> str:
    """Give the last error in the server's log."""
    found = re.findall(r"^[\w.]+(?:Error|Exception): .+", SERVER_LOG.read_text(encoding="utf-8"), re.MULTILINE)
    return f" ({found[-1]})" if found else ""


def _cure() -> str:
    return f"correct {DATABASE}, or unset it, and run again" if DATABASE in os.environ else "run again"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
