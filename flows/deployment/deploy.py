"""The flow as a Prefect deployment that runs by the clock, and beside it the one that asks for approval."""

from zoneinfo import ZoneInfo

from flows.prefect_server.address import check_reachable
from flows.prefect_server.deployments import ASKED, DEPLOYMENT, PIPELINE
from flows.prefect_server.heartbeats import ensure_rule, send_heartbeats
from tasks.common.errors import InputError
from tasks.common.files import STATE


def schedule(cron: str, timezone: str, api_url: str) -> None:
    """Serve the flows until interrupted: a Prefect server starts their runs, and they run here, one at a time.

    Args:
        cron: minute, hour, day of month, month, day of week.
        timezone: IANA name of the zone whose clock counts.
        api_url: the Prefect server, named in PREFECT_API_URL too.

    Raises:
        InputError: the schedule or the time zone is invalid, or no server answers.
    """
    STATE.mkdir(exist_ok=True)  # Prefect makes its home there, but no folder above it
    check_timezone(timezone)
    check_cron(cron)
    check_reachable(api_url)
    send_heartbeats()
    ensure_rule((PIPELINE,))
    from prefect import serve
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.pipeline.approval import approval
    from flows.pipeline.flow import pipeline

    by_module = EntrypointType.MODULE_PATH
    clock = Cron(cron, timezone=timezone)
    serve(
        RunnerDeployment.from_flow(pipeline, DEPLOYMENT, schedule=clock, entrypoint_type=by_module),
        RunnerDeployment.from_flow(approval, ASKED, entrypoint_type=by_module),
        limit=1,
    )


def check_cron(cron: str) -> None:
    """Make sure that a schedule can be understood.

    Raises:
        InputError: it cannot.
    """
    from prefect.client.schemas.schedules import CronSchedule

    try:
        valid = len(cron.split()) == 5 and bool(CronSchedule(cron=cron))
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{cron!r} is no cron schedule: give five fields, as in '0 3 * * 1' (Mondays at 3:00)")


def check_timezone(name: str) -> None:
    """Make sure that a time zone is known.

    Raises:
        InputError: it is not.
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InputError(f"{name!r} is no time zone: give an IANA name such as Europe/Zurich or UTC") from None
