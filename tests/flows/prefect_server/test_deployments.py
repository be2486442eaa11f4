"""What is deployed, as data: nothing here needs a server."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prefect.server import api
from prefect.workers.base import BaseJobConfiguration

from flows.prefect_server.deployments import (
    Source,
    Wanted,
    check_job_variables,
    deployments,
    job_variables,
    passed_on,
    pool_type,
    read_source,
    with_passed_on,
)
from tasks.common.errors import InputError

TEMPLATES = Path(str(api.__file__)).parent / "collections_data/views/aggregate-worker-metadata.json"
GIT = Source("https://example.org/team/models.git", "main")


def wanted(**changes: Any) -> Wanted:
    return Wanted("pool", "docker", GIT, "trueline", image="trueline:1")._replace(**changes)


def template(kind: str) -> dict[str, Any]:
    """The template that the server makes a pool with."""
    packages = json.loads(TEMPLATES.read_text()).values()
    [found] = [types[kind]["default_base_job_configuration"] for types in packages if kind in types]
    return dict(found)


def test_the_pipeline_queues_and_the_approval_does_not() -> None:
    pipeline, approval = deployments(wanted(settings=("seed=3",), remote="s3://bucket/dvc"))

    assert (pipeline.flow, pipeline.name, pipeline.queue) == ("trueline", "scheduled", "trueline")
    assert (approval.flow, approval.name, approval.queue) == ("trueline-approval", "asked", None)
    assert pipeline.parameters == {"settings": ["registry.publish=true", "seed=3"], "remote": "s3://bucket/dvc"}
    assert pipeline.pull_steps == [
        {"prefect.deployments.steps.git_clone": {"repository": GIT.url, "branch": "main"}}
    ]  # fmt: skip
    assert (pipeline.is_scheduled, approval.is_scheduled) == (True, False)


def test_another_name_has_its_own_approval() -> None:
    assert [each.name for each in deployments(wanted(name="weekly"))] == ["weekly", "asked-weekly"]


def test_the_gpu_part_goes_to_its_pool() -> None:
    pipeline, _, part = deployments(wanted(gpu_pool="gpus"))

    assert pipeline.parameters["gpu_part"] == f"{part.flow}/{part.name}"
    assert (part.pool, part.queue) == ("gpus", "trueline")
    with pytest.raises(InputError, match="--here and --gpu-pool exclude each other"):
        deployments(wanted(gpu_pool="gpus", source=Source(None, folder="/checkout")))


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_every_pool_takes_the_job_variables_and_its_worker_fills_in_its_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's own code makes the worker's configuration; containers are not started here."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    asked = wanted(env=("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI=http://mlflow:5000"))
    asked = asked._replace(image=None if kind == "process" else "trueline:1")
    variables, changed = job_variables(asked), with_passed_on(template(kind), passed_on(asked))

    check_job_variables(variables, changed, "pool")
    assert "very secret" not in json.dumps([variables, changed])
    changed["job_configuration"].pop("job_manifest", None)  # of a class that only prefect-kubernetes has
    unasked: Any = object()  # a client; nothing here refers to a block
    made: BaseJobConfiguration = asyncio.run(
        BaseJobConfiguration.from_template_and_values(changed, variables, client=unasked)
    )
    assert made.env["AWS_SECRET_ACCESS_KEY"] == "very secret"
    assert made.env["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert made.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_a_job_variable_that_the_pool_does_not_know() -> None:
    with pytest.raises(InputError, match="the work pool gpus has no job variable gpu: it has command, env"):
        check_job_variables({"gpu": "1"}, template("docker"), "gpus")


@pytest.mark.parametrize("given", ["HUB_TOKEN=abcdefghi", "DB=postgresql://me:pass@db/x", "aws_secret_access_key=x"])
def test_a_secret_is_not_written_into_a_deployment(given: str) -> None:
    with pytest.raises(InputError, match="would write a secret into the deployment"):
        job_variables(wanted(env=(given,)))


def test_a_secret_of_a_block_is_named() -> None:
    env = job_variables(wanted(env=("HUB_TOKEN=secret:hub",)))["env"]

    assert env["HUB_TOKEN"] == "{{ prefect.blocks.secret.hub }}"


@pytest.mark.parametrize(("kind", "given"), [("env", "1X=2"), ("env", "a b"), ("job", "cpu"), ("job", "=4")])
def test_variables_that_are_none(kind: str, given: str) -> None:
    with pytest.raises(InputError, match=f"--{kind} {given}"):
        job_variables(wanted(**{kind: (given,)}))


def test_a_type_that_is_none() -> None:
    with pytest.raises(InputError, match="--type nomad is no type of work pool here: give process, docker, kubernetes"):
        pool_type("nomad")


@pytest.mark.parametrize(
    ("given", "url", "branch"),
    [
        ("https://example.org/a/b.git@main", "https://example.org/a/b.git", "main"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git", None),
        ("git@example.org:a/b.git@team/next", "git@example.org:a/b.git", "team/next"),
        ("ssh://git@example.org/a/b@v1", "ssh://git@example.org/a/b", "v1"),
        ("/srv/git/models", "/srv/git/models", None),
    ],
)
def test_addresses_of_git(given: str, url: str, branch: str | None) -> None:
    assert read_source(given, None, False, "docker") == Source(url, branch)


def test_the_upstream_is_the_source_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments], check=True, capture_output=True
        )

    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "work", "here")
    git("init", "-q", "--bare", "there")
    monkeypatch.chdir("here")
    git("commit", "-q", "--allow-empty", "-m", "One")
    with pytest.raises(InputError, match="has no upstream that a worker could clone: push it"):
        read_source(None, None, False, "process")
    git("remote", "add", "origin", "../there")
    git("push", "-q", "-u", "origin", "work")

    assert read_source(None, "token", False, "process") == Source(str(tmp_path / "there"), "work", "token")
    assert read_source(None, None, True, "process").pull_steps() == [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path / "here")}}
    ]


def test_sources_that_cannot_be() -> None:
    with pytest.raises(InputError, match="--git holds a password"):
        read_source("https://token@example.org/a/b", None, False, "docker")
    with pytest.raises(InputError, match="--here is for process pools on this machine"):
        read_source(None, None, True, "docker")
