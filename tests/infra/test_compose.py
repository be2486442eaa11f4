"""compose.yaml as Docker Compose reads it: nothing is started."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import cli
from infra.make_env import filled
from tests.conftest import ROOT

COMPOSE, GPU = ROOT / "infra/compose.yaml", ROOT / "infra/compose.gpu.yaml"
EXAMPLE = (ROOT / "infra/env.example").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+)")
ASSIGNED = re.compile(r"^(\w+)=(.*)$", re.MULTILINE)
ONE_SHOT = {"volumes", "init", "checkout"}
OTHERS = {"postgres", "s3"}  # not our image


def config(environment: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    named = [option for file in files for option in ("--file", str(file))]
    return subprocess.run(
        ["docker-compose", "--env-file", str(environment), *named, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(environment.parent)},
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as make_env writes it."""
    file = tmp_path_factory.mktemp("compose") / "env"
    file.write_text("\n".join(filled(EXAMPLE)))
    return file


@pytest.fixture(scope="module")
def services(environment: Path) -> dict[str, Any]:
    done = config(environment, COMPOSE)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_nothing_can_be_reached_from_other_machines(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert {port["target"] for port in published} == {5000, 4200, 8000, 9108}
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_every_service_is_confined_and_rotates_its_log(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        if name != "postgres":
            assert service["read_only"], name
        if name not in ONE_SHOT:
            assert service["restart"] == "unless-stopped", name
            assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
            assert "healthcheck" in service or name == "worker", name


def test_each_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    for name, needed in needs.items():
        for other, how in needed.items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how["condition"] == expected, f"{name} on {other}"
    assert needs["init"].keys() == {"postgres", "s3"}
    assert {name for name, needed in needs.items() if "init" in needed} == {"mlflow", "prefect", "checkout"}
    assert all(needs[name].keys() == {"checkout", "mlflow", "prefect"} for name in ("worker", "serving", "metrics"))


def test_volumes_that_our_user_writes_are_given_to_it_first(services: dict[str, Any]) -> None:
    """Docker gives a new volume the owner of the folder in the first image that mounts it."""
    first = {volume["source"]: volume["target"] for volume in services["volumes"]["volumes"]}

    assert first == {"objects": "/objects", "checkout": "/checkout"}
    assert "volumes" in services["s3"]["depends_on"]
    assert "install --directory --owner=10001 --group=10001 /checkout /objects" in (
        ROOT / "infra/Dockerfile"
    ).read_text(encoding="utf-8")


def test_our_commands_exist_with_their_options(services: dict[str, Any]) -> None:
    group: Any = typer.main.get_command(cli.app)
    commands = [
        service["command"]
        for service in services.values()
        if service["command"] and service["command"][0] == "trueline"
    ]

    assert len(commands) == 3
    for _, name, *arguments in commands:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {each for each in arguments if each.startswith("--")} <= known, name


def test_programs_of_the_image_exist(services: dict[str, Any]) -> None:
    named = set(re.findall(r"/opt/trueline/(containers/\w+\.\w+)", COMPOSE.read_text(encoding="utf-8")))

    assert named == {
        f"containers/{file.name}" for file in (ROOT / "infra/containers").iterdir() if file.suffix in (".py", ".sh")
    }
    assert all(service["image"] == "trueline:local" for name, service in services.items() if name not in OTHERS)


def test_every_variable_is_in_the_example_and_no_other() -> None:
    used = {name for file in (COMPOSE, GPU) for name in VARIABLE.findall(file.read_text(encoding="utf-8"))}

    assert used == {name for name, _ in ASSIGNED.findall(EXAMPLE)}


def test_defaults_are_those_of_the_example() -> None:
    text = COMPOSE.read_text(encoding="utf-8") + GPU.read_text(encoding="utf-8")
    defaults = set(re.findall(r"\$\{(\w+):-([^}]*)\}", text))

    assert defaults == {(name, value) for name, value in ASSIGNED.findall(EXAMPLE) if (name, value) in defaults}


def test_secrets_are_made_and_asked_for(environment: Path, tmp_path: Path) -> None:
    empty = {name for name, value in ASSIGNED.findall(EXAMPLE) if not value}
    made = {name: value for name, value in ASSIGNED.findall(environment.read_text()) if name in empty and value}
    assert empty - made.keys() == {"TRUELINE_JUDGE_API_KEY", "TRUELINE_NOTIFY"}
    assert len({*made.values()}) == len(made) == 8
    assert all(re.fullmatch(r"[\w-]{43}", value) for value in made.values())

    (tmp_path / "env").write_text(EXAMPLE)
    refused = config(tmp_path / "env", COMPOSE)
    assert refused.returncode != 0
    assert {
        name for name in made if f"required variable {name} is missing a value: run infra/make_env.py" in refused.stderr
    } == {*made}


def test_a_file_of_secrets_is_for_its_owner_and_stays(tmp_path: Path) -> None:
    for name in ("make_env.py", "env.example"):
        (tmp_path / name).write_bytes((ROOT / "infra" / name).read_bytes())
    command = [sys.executable, str(tmp_path / "make_env.py")]
    subprocess.run(command, check=True, capture_output=True)
    written = tmp_path / ".env"
    before = written.read_text()
    again = subprocess.run(command, check=False, capture_output=True, text=True)

    assert written.stat().st_mode & 0o777 == 0o600
    assert again.returncode == 1
    assert "stays as it is" in again.stderr
    assert written.read_text() == before


def test_with_a_gpu_worker_and_serving_have_one(environment: Path) -> None:
    done = config(environment, COMPOSE, GPU)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["services"]
    with_gpu = {
        name for name, service in found.items() if "reservations" in service.get("deploy", {}).get("resources", {})
    }

    assert with_gpu == {"worker", "serving"}
    assert all(found[name]["build"]["target"] == "cuda" for name in with_gpu)
    assert all(found[name]["deploy"]["resources"]["limits"] for name in with_gpu)
