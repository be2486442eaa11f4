"""The whole flow as a command runs it: without Prefect where nothing is stale."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from flows.pipeline.steps import Result


def run_flow(pull: bool | None = None) -> "Result":
    """Run what has changed, and promote the model if the gate says so.

    Args:
        pull: whether results that DVC's default remote has are fetched; None fetches them where it answers.

    Raises:
        InputError: something must be fixed, or another flow runs in this checkout.
        Exit: a stage failed, which is reported.
    """
    from flows.pipeline.steps import check, finish_unchanged
    from flows.prefect_server.address import named_server, named_server_answers
    from flows.processes.interrupts import report_interruption

    with report_interruption(named_server_answers):
        if named := named_server():  # it keeps a record of every run
            check(named)
            return _by_prefect(pull)
        return finish_unchanged() or _by_prefect(pull)


def _by_prefect(pull: bool | None) -> "Result":
    from flows.prefect_server.heartbeats import send_heartbeats
    from flows.prefect_server.temporary_server import local_server
    from flows.stages.reproduce import StageError

    send_heartbeats()
    with local_server():
        from prefect.exceptions import CancelledRun

        from flows.pipeline.flow import pipeline

        try:
            return pipeline(pull=pull)
        except CancelledRun:
            sys.stderr.write("trueline: cancelled on the Prefect server; run again to continue\n")
            raise typer.Exit(143) from None
        except StageError as error:
            sys.stderr.write(f"trueline: {error}\n")
            raise typer.Exit(1) from None
