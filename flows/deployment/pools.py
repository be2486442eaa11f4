"""Deployments for work pools: a worker anywhere takes the code from git, and results from DVC's remote."""

from typing import TYPE_CHECKING, Any

from flows.deployment.deploy import check_cron, check_timezone
from flows.prefect_server.address import check_reachable
from flows.prefect_server.deployments import (
    Deployment,
    PoolType,
    Wanted,
    check_job_variables,
    deployments,
    passed_on,
    with_passed_on,
)
from flows.prefect_server.heartbeats import ensure_rule
from tasks.common.errors import InputError
from tasks.common.files import STATE

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WORKERS = {"docker": "prefect-docker", "kubernetes": "prefect-kubernetes", "process": None}  # package of the worker


def deploy(wanted: Wanted, api_url: str) -> dict[str, Any]:
    """Make the deployments, and the pool, the queue and the rule for crashed runs that they need, or update them.

    Args:
        wanted: what is deployed where.
        api_url: the Prefect server, named in PREFECT_API_URL too.

    Returns:
        The names of the deployments, the pools and the queue, and how a worker is started.

    Raises:
        InputError: the schedule, a variable or the pool's type is wrong, or no server answers.
    """
    STATE.mkdir(exist_ok=True)  # Prefect makes its home there, but no folder above it
    check_timezone(wanted.timezone)
    if wanted.cron is not None:
        check_cron(wanted.cron)
    if wanted.kind != "process" and not wanted.image:
        raise InputError(f"a {wanted.kind} pool runs an image: give --image NAME:TAG (infra/README.md builds one)")
    made = deployments(wanted)
    check_reachable(api_url)
    from prefect.client.orchestration import get_client

    pools = {wanted.pool: wanted.kind} | ({wanted.gpu_pool: wanted.gpu_kind} if wanted.gpu_pool else {})
    with get_client(sync_client=True) as client:
        templates = {pool: _pool_template(client, pool, kind, passed_on(wanted)) for pool, kind in pools.items()}
        for each in made:
            check_job_variables(each.job_variables, templates[each.pool], each.pool)
        for pool, kind in pools.items():
            _ensure_pool(client, pool, kind, templates[pool])
            _ensure_queue(client, pool, wanted.queue)
        for each in made:
            _create(client, each, wanted)
    ensure_rule(tuple(each.flow for each in made if each.queue))  # a run that waits for approval has no process
    return {
        "deployments": [f"{each.flow}/{each.name}" for each in made],
        "pools": pools,
        "queue": wanted.queue,
        "source": wanted.source.url or wanted.source.folder,
        "workers": [_worker(pool, kind) for pool, kind in pools.items()],
    }


def _pool_template(client: "SyncPrefectClient", name: str, kind: PoolType, variables: list[str]) -> dict[str, Any]:
    """Give the template that the pool has or gets, in which its workers pass variables on."""
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        return with_passed_on(_template(client, kind), variables)
    if pool.type != kind:
        raise InputError(f"the work pool {name} is of type {pool.type}: give --type {pool.type}, or another --pool")
    return with_passed_on(pool.base_job_template or _template(client, kind), variables)


def _ensure_pool(client: "SyncPrefectClient", name: str, kind: PoolType, template: dict[str, Any]) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
    except ObjectAlreadyExists:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def _template(client: "SyncPrefectClient", kind: PoolType) -> dict[str, Any]:
    """Give the template of a type of pool, which the server has also where the worker's package is not installed."""
    workers = [found for package in client.read_worker_metadata().values() for found in package.items()]
    template: dict[str, Any] = dict(workers)[kind]["default_base_job_configuration"]
    return template


def _ensure_queue(client: "SyncPrefectClient", pool: str, name: str) -> None:
    """Make the queue whose runs start one at a time: the server counts them, whatever deployment they are of."""
    from prefect.exceptions import ObjectNotFound

    try:
        queue = client.read_work_queue_by_name(name, work_pool_name=pool)
    except ObjectNotFound:
        queue = client.create_work_queue(name, work_pool_name=pool)
    client.update_work_queue(queue.id, concurrency_limit=1)


def _create(client: "SyncPrefectClient", made: Deployment, wanted: Wanted) -> None:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.importtools import import_object

    cron = made.is_scheduled and wanted.cron
    schedule = CronSchedule(cron=cron, timezone=wanted.timezone) if cron else None
    client.create_deployment(
        client.create_flow_from_name(made.flow),
        made.name,
        schedules=[DeploymentScheduleCreate(schedule=schedule, active=True)] if schedule else [],
        parameters=made.parameters,
        work_queue_name=made.queue,
        work_pool_name=made.pool,
        entrypoint=made.entrypoint,
        parameter_openapi_schema=parameter_schema(import_object(made.entrypoint)).model_dump(),
        paused=False,
        pull_steps=made.pull_steps,
        job_variables=made.job_variables,
        enforce_parameter_schema=True,
    )


def _worker(pool: str, kind: PoolType) -> str:
    package = WORKERS[kind]
    return f"prefect worker start --pool {pool}" + (f" (needs the package {package})" if package else "")
