"""Starting the run that changed sources ask for: here, or by the Prefect server's deployment, which queues it."""

import socket
import sys
from pathlib import Path
from typing import IO, Literal

from flows.prefect_server.deployments import DEPLOYMENT, PIPELINE
from flows.processes.locks import running_flow
from tasks.common.children import child
from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets

Outcome = Literal["succeeded", "failed", "busy", "asked"]
COMMAND = (sys.executable, "-m", "flows.cli", "run")
BAD_INPUT = 2  # exit code


def run_here(stdout: IO[str] | None = None) -> Outcome:
    """Run `trueline run` in this checkout, and wait for it; busy: another flow was faster."""
    with child(COMMAND, stdout=stdout) as process:
        code = process.wait()
    if code == BAD_INPUT and running_flow():
        return "busy"
    return "failed" if code else "succeeded"


def ask_server(server: str, number: int) -> Outcome:
    """Have the deployment run; asking twice with the same number starts one run.

    Args:
        server: address of the Prefect server, named in PREFECT_API_URL too.
        number: of the run among those of this watch.

    Raises:
        InputError: the server does not answer, or has no such deployment.
    """
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    name = f"{PIPELINE}/{DEPLOYMENT}"
    try:
        run_deployment(
            name,
            timeout=0,
            as_subflow=False,
            idempotency_key=f"watch of {Path.cwd()} on {socket.gethostname()}, {number}",
            tags=["watch"],
        )
    except ObjectNotFound:
        raise InputError(
            f"{without_secrets(server)} has no deployment {name}: start trueline schedule, or unset PREFECT_API_URL "
            "so that the run is made here"
        ) from None
    except Exception as error:  # of many kinds, by what is between here and the server
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{without_secrets(server)} starts no run ({without_secrets(reason)}): start it") from None
    return "asked"
