"""infra/prefect.yaml deploys what `trueline deploy` does."""

from typing import Any

import yaml

from flows.prefect_server.deployments import Deployment, Source, Wanted, deployments
from tests.conftest import ROOT

GIT = Source("https://git.example.com/team/models.git", "main")


def declared() -> list[dict[str, Any]]:
    content = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text(encoding="utf-8"))
    return [{"pull": content["pull"], **each} for each in content["deployments"]]


def as_declared(made: Deployment) -> dict[str, Any]:
    queue = {"work_queue_name": made.queue} if made.queue else {}
    schedule = {"schedules": [{"cron": "0 3 * * 1", "timezone": "UTC"}]} if made.is_scheduled else {}
    return {
        "pull": made.pull_steps,
        "name": made.name,
        "entrypoint": made.entrypoint,
        "parameters": made.parameters,
        "work_pool": {"name": made.pool, **queue, "job_variables": made.job_variables},
        **schedule,
    }


def test_the_file_and_the_command_agree() -> None:
    wanted = Wanted("trueline", "process", GIT, "trueline", cron="0 3 * * 1")

    assert declared() == [as_declared(each) for each in deployments(wanted)]
