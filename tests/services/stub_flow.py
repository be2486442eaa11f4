"""The real flow with one stage that sleeps: `python -m tests.services.stub_flow NAME SECONDS` serves it so often."""

import sys
from types import SimpleNamespace
from typing import Any, cast

from prefect import task

from flows.pipeline import flow as module
from flows.pipeline.steps import Result
from flows.prefect_server.deployments import PIPELINE
from flows.prefect_server.heartbeats import ensure_rule, send_heartbeats
from tasks.common.children import child

# Until the file is gone.
SLEEP = """
import os, time
while os.path.exists("sleep"):
    time.sleep(0.2)
"""


@task
def _sleep() -> None:
    with child([sys.executable, "-c", SLEEP]) as process:
        process.wait()


def _finish(*_arguments: object) -> Result:
    _sleep()
    module.report(cast("Any", None))
    return Result([], cast("Any", {}), cast("Any", {}), [])


WRITTEN = {"path": "report.html", "address": "file:///report.html", "run_id": "abc"}
DOUBLES = {
    "write_report": lambda _params: WRITTEN,
    "load_params": lambda: SimpleNamespace(align=SimpleNamespace(method="stub")),
    "end_runs_of_ended_flows": lambda _params: None,
    "begin": lambda _steps: (None, None),
    "finish": _finish,
    "Walk": lambda *_arguments: None,
    "Fetching": lambda *_arguments, **_options: None,
}
for name, double in DOUBLES.items():
    setattr(module, name, double)
pipeline = module.pipeline


def serve(name: str, every: float) -> None:
    """Serve it as `trueline schedule` does."""
    from prefect import serve
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Interval
    from prefect.types.entrypoint import EntrypointType

    served = RunnerDeployment.from_flow(
        pipeline, name, schedule=Interval(every), entrypoint_type=EntrypointType.MODULE_PATH
    )
    served.entrypoint = "tests.services.stub_flow.pipeline"
    ensure_rule((PIPELINE,))
    serve(served, limit=1)


if __name__ == "__main__":
    send_heartbeats()
    serve(sys.argv[1], float(sys.argv[2]))
