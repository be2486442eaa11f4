"""What `trueline deploy` puts on the Prefect server, as plain data: deployments, and what they ask of their pool."""

import re
import subprocess
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from flows.prefect_server.heartbeats import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE
from tasks.common.errors import InputError
from tasks.common.safe_text import names_secret, without_secrets

PoolType = Literal["process", "docker", "kubernetes"]
DEPLOYMENT, ASKED = "scheduled", "asked"  # of the pipeline, and of the flow that asks for approval
PUBLISH = "registry.publish=true"
PIPELINE, APPROVAL, GPU_PART = "trueline", "trueline-approval", "trueline-gpu-part"
USER = re.compile(r"([a-z+]+://)?([^/@]*@)?")


class Source(NamedTuple):
    """Where a worker takes the code and dvc.lock from."""

    url: str | None  # of a git repository; None: the checkout at `folder`, on the worker's own machine
    branch: str | None = None
    secret: str | None = None  # a Secret block of Prefect with an access token
    folder: str = ""

    def pull_steps(self) -> list[dict[str, Any]]:
        """Give what a worker does before the flow starts."""
        if self.url is None:
            return [{"prefect.deployments.steps.set_working_directory": {"directory": self.folder}}]
        named = {"repository": self.url, "branch": self.branch}
        token = {"access_token": f"{{{{ prefect.blocks.secret.{self.secret} }}}}"} if self.secret else {}
        return [{"prefect.deployments.steps.git_clone": {key: each for key, each in named.items() if each} | token}]


class Wanted(NamedTuple):
    """What the command was asked for."""

    pool: str
    kind: PoolType
    source: Source
    queue: str  # whose runs start one at a time
    name: str = DEPLOYMENT
    image: str | None = None
    remote: str | None = None  # of DVC
    settings: tuple[str, ...] = ()
    cron: str | None = None
    timezone: str = "UTC"
    env: tuple[str, ...] = ()
    job: tuple[str, ...] = ()
    gpu_pool: str | None = None
    gpu_kind: PoolType = "kubernetes"


class Deployment(NamedTuple):
    """A deployment on the server."""

    flow: str
    name: str
    pool: str
    queue: str | None  # None: the pool's own, which has no limit
    entrypoint: str
    parameters: dict[str, Any]
    job_variables: dict[str, Any]
    pull_steps: list[dict[str, Any]]
    is_scheduled: bool = False


def pool_type(name: str) -> PoolType:
    """Read a type of work pool.

    Raises:
        InputError: there is none of that name here.
    """
    for known in get_args(PoolType):
        if name == known:
            return cast("PoolType", known)
    raise InputError(f"--type {name} is no type of work pool here: give {', '.join(get_args(PoolType))}")


def approval_name(name: str) -> str:
    """Name the deployment that asks for approval, for a deployment of the pipeline."""
    return ASKED if name == DEPLOYMENT else f"{ASKED}-{name}"


def deployments(wanted: Wanted) -> list[Deployment]:
    """Give the deployments: the pipeline, the approval, and the part for the GPU pool if there is one.

    Raises:
        InputError: a variable is not NAME, NAME=VALUE or NAME=secret:BLOCK, or its value is a secret.
    """
    if wanted.gpu_pool and wanted.source.url is None:
        raise InputError("--here and --gpu-pool exclude each other: the two parts need clones of their own (--git)")
    variables, steps = job_variables(wanted), wanted.source.pull_steps()
    place = {"remote": wanted.remote} if wanted.remote else {}
    # A clone is gone after its run: what is not published is lost, and the next clone's record is behind the registry.
    shares = () if wanted.source.url is None else (PUBLISH,)
    settings = {"settings": [*shares, *wanted.settings]}
    gpu = {"gpu_part": f"{GPU_PART}/{wanted.name}"} if wanted.gpu_pool else {}
    made = [
        Deployment(
            PIPELINE, wanted.name, wanted.pool, wanted.queue, "flows.pipeline.flow.pipeline",
            {**settings, **place, **gpu}, variables, steps, is_scheduled=True,
        ),
        Deployment(
            APPROVAL, approval_name(wanted.name), wanted.pool, None, "flows.pipeline.approval.approval",
            settings, variables, steps,
        ),
    ]  # fmt: skip
    if wanted.gpu_pool:
        part = Deployment(
            GPU_PART, wanted.name, wanted.gpu_pool, wanted.queue, "flows.deployment.gpu_part.gpu_part",
            {**settings, **place}, variables, steps,
        )  # fmt: skip
        made.append(part)
    return made


def job_variables(wanted: Wanted) -> dict[str, Any]:
    """Give the job variables of a worker: image, environment, and what --job names.

    Raises:
        InputError: as `deployments` says.
    """
    env = {HEARTBEAT_VARIABLE: str(HEARTBEAT_SECONDS)}
    for given in wanted.env:
        name, equals, value = given.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"--env {given} names no variable: give NAME, NAME=VALUE or NAME=secret:BLOCK")
        if value.startswith("secret:"):
            env[name] = f"{{{{ prefect.blocks.secret.{value.removeprefix('secret:')} }}}}"
        elif equals:
            env[name] = _plain(name, value)
    jobs = dict(_pair(given) for given in wanted.job)
    return {**({"image": wanted.image} if wanted.image else {}), **jobs, "env": env}


def passed_on(wanted: Wanted) -> list[str]:
    """Name the variables of the worker's own environment that its runs get, too."""
    return [given for given in wanted.env if "=" not in given]


def read_source(git: str | None, secret: str | None, here: bool, kind: PoolType) -> Source:
    """Read where the code comes from: --git, --here, or else the upstream of this checkout's branch.

    Raises:
        InputError: there is none, the address holds a password, or a container is to use this folder.
    """
    if here:
        if kind != "process" or git:
            raise InputError("--here is for process pools on this machine, and without --git: give --git URL@BRANCH")
        return Source(None, folder=str(Path.cwd()))
    if git is None:
        git = _upstream()
    if re.match(r"https?://[^/]*@", git):
        raise InputError("--git holds a password, which would be on the server: give --git-secret BLOCK instead")
    prefix = USER.match(git)
    assert prefix is not None
    address, _, branch = git[prefix.end() :].partition("@")
    url = prefix.group() + address
    return Source(str(Path(url).resolve()) if Path(url).exists() else url, branch or None, secret)


def check_job_variables(variables: dict[str, Any], template: dict[str, Any], pool: str) -> None:
    """Make sure that a pool's template takes the job variables.

    Raises:
        InputError: it does not know one of them.
    """
    known = template["variables"]["properties"]
    unknown = sorted(set(variables) - set(known))
    if unknown:
        raise InputError(f"the work pool {pool} has no job variable {', '.join(unknown)}: it has {', '.join(known)}")


def with_passed_on(template: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Give a pool's template in which the worker fills in variables of its own environment."""
    properties = template["variables"]["properties"]
    default = dict(properties["env"].get("default") or {}) | {name: f"{{{{ ${name} }}}}" for name in names}
    changed = {**properties, "env": {**properties["env"], "default": default}}
    return {**template, "variables": {**template["variables"], "properties": changed}}


def _plain(name: str, value: str) -> str:
    if names_secret(name) or without_secrets(value) != value:
        raise InputError(
            f"--env {name}=… would write a secret into the deployment: give --env {name} (the worker has it) or "
            f"--env {name}=secret:BLOCK (a Secret block of Prefect)"
        )
    return value


def _pair(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise InputError(f"--job {given} is no job variable: give KEY=VALUE")
    return name, value


def _upstream() -> str:
    branch = _git("rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}")
    remote, _, name = (branch or "").partition("/")
    url = _git("remote", "get-url", remote) if name else None
    if not url:
        raise InputError(
            "this checkout's branch has no upstream that a worker could clone: push it (git push -u origin main), or "
            "give --git URL@BRANCH, or --here for a process pool on this machine"
        )
    return f"{url}@{name}"


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None
