"""The commands that start runs by the clock, on this machine or anywhere."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.commands.common import AsJson, print_result, settings

Cron = Annotated[str, typer.Option(help="Five fields: '0 3 * * 1' is Mondays at 3:00.")]
Timezone = Annotated[str, typer.Option(help="The time zone of --cron.")]
Kind = Annotated[str, typer.Option("--type", help="process, docker or kubernetes: of a pool that is made.")]


def schedule(cron: Cron, timezone: Timezone = "UTC") -> None:
    """Run the pipeline on a schedule, through a Prefect server.

    The server is the one at PREFECT_API_URL; make server starts one on this machine.
    """
    from flows.deployment.deploy import schedule as serve

    serve(cron, timezone, _server())


def deploy(  # noqa: PLR0917  # typer gives them by name
    pool: Annotated[str, typer.Option(help="The Prefect work pool that runs it; made if missing.")],
    kind: Kind = "process",
    image: Annotated[str | None, typer.Option(help="The image of docker and kubernetes pools.")] = None,
    git: Annotated[
        str | None, typer.Option(metavar="URL[@BRANCH]", help="What workers clone. Default: this branch's upstream.")
    ] = None,
    git_secret: Annotated[str | None, typer.Option(metavar="BLOCK", help="A Secret block with a token for it.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Run in this folder: process pools on this machine.")] = False,
    remote: Annotated[str | None, typer.Option(help="DVC's remote. Default: the one that git has.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="FILE|KEY=VALUE", help="Settings, as in trueline configure.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="A variable: the worker's, a value, or NAME=secret:BLOCK."),
    ] = None,
    job: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A job variable of the pool.")] = None,
    gpu_pool: Annotated[str | None, typer.Option(help="A pool for the stages that train and evaluate.")] = None,
    gpu_kind: Annotated[str | None, typer.Option("--gpu-type", help="Its type. Default: --type.")] = None,
    cron: Annotated[str | None, typer.Option(help="Five fields. Default: runs are started by hand.")] = None,
    timezone: Timezone = "UTC",
    name: Annotated[str, typer.Option(help="Of the deployment, where one server has several.")] = "scheduled",
    as_json: AsJson = False,
) -> None:
    """Deploy the pipeline to a Prefect work pool.

    Workers run it anywhere, one run at a time.
    """
    from flows.deployment.pools import deploy as make
    from flows.prefect_server.deployments import Wanted, pool_type, read_source

    own_type = pool_type(kind)
    params = settings()
    wanted = Wanted(
        pool, own_type, read_source(git, git_secret, here, own_type), params.registry.experiment, name, image, remote,
        tuple(setting or ()), cron, timezone, tuple(env or ()), tuple(job or ()), gpu_pool, pool_type(gpu_kind or kind),
    )  # fmt: skip
    print_result(make(wanted, _server()), as_json, _show)


def _show(made: Mapping[str, Any]) -> None:
    typer.echo(f"Deployed {', '.join(made['deployments'])}; runs of the queue {made['queue']} start one at a time.")
    typer.echo(f"Workers take the code from {made['source']}. Start one, where it is to run:")
    for worker in made["workers"]:
        typer.echo(f"  {worker}")


def _server() -> str:
    from flows.prefect_server.temporary_server import API_URL

    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # here Prefect's lines are what one waits for
    return os.environ.setdefault("PREFECT_API_URL", API_URL)
