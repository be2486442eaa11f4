"""The image: what it copies, who runs in it, and the programs that it brings."""

import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT

CONTAINERS = ROOT / "infra/containers"
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text(encoding="utf-8")
USER = "10001:10001"


def stages() -> dict[str, str]:
    """The text of each stage of the Dockerfile, by name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the image."""
    program = [sys.executable] if script.endswith(".py") else ["sh"]
    return subprocess.run(
        [*program, str(CONTAINERS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
    )


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", ROOT / "infra/Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_context_is_what_the_image_copies() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for source in line.split()[:-1]
    }
    ignored, *others = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    assert ignored == "*"
    assert {line.removeprefix("!") for line in others if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_ends_as_a_user_with_a_fixed_number(target: str) -> None:
    lines = stages()[target].strip().splitlines()

    assert lines[-1] == f"USER {USER}"
    assert f"--uid {USER.partition(':')[0]} " in stages()["system"]


def test_the_locked_packages_are_installed() -> None:
    for target in ("cpu", "cuda"):
        packages = stages()[f"packages-{target}"]
        assert "--requirement requirements.lock --requirement requirements-production.lock" in packages
        assert "pip check" in packages
    assert "download.pytorch.org/whl/cpu" in stages()["packages-cpu"]
    assert "download.pytorch.org" not in stages()["packages-cuda"]


@pytest.mark.slow
def test_a_checkout_is_cloned_once_and_has_its_remote(tmp_path: Path) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    for command in (
        ["git", "init", "-q", source],
        ["git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"],
        [sys.executable, "-m", "dvc", "--cd", source, "init", "-q"],
        ["git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "dvc"],
    ):
        subprocess.run([*map(str, command)], check=True, capture_output=True)
    given = {
        "TRUELINE_GIT_URL": str(source),
        "TRUELINE_BUCKET": "models",
        "AWS_ENDPOINT_URL": "http://s3:7070",
        "TRUELINE_CHECKOUT": str(clone),
    }
    assert run("checkout.sh", **given).returncode == 0
    (clone / "kept.txt").write_text("mine")
    again = run("checkout.sh", **given | {"TRUELINE_BUCKET": "others"})

    assert again.returncode == 0, again.stderr
    assert (clone / "kept.txt").read_text() == "mine"
    config = (clone / ".dvc/config.local").read_text()
    assert "url = s3://others" in config
    assert "endpointurl = http://s3:7070" in config
    assert "remote = storage" in config


def test_a_checkout_without_a_repository_is_refused(tmp_path: Path) -> None:
    done = run("checkout.sh", TRUELINE_CHECKOUT=str(tmp_path))

    assert done.returncode != 0
    assert "name the git repository to clone" in done.stderr


def test_mlflow_starts_with_users_whose_database_nobody_else_can_read(tmp_path: Path) -> None:
    program = tmp_path / "bin/mlflow"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\ncat "$MLFLOW_AUTH_CONFIG_PATH"\n')
    program.chmod(0o755)
    given = {"PATH": f"{program.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = run("mlflow.sh", **given, MLFLOW_AUTH_DATABASE_URI="postgresql://mlflow:p@postgres/mlflow_users")

    command, *config = done.stdout.splitlines()
    assert command.startswith("server --app-name basic-auth --host 0.0.0.0 --port 5000 ")
    assert "p@postgres" not in command  # every process of the machine can read it
    assert config == [
        "[mlflow]",
        "database_uri = postgresql://mlflow:p@postgres/mlflow_users",
        "default_permission = READ",
    ]
    assert stat.S_IMODE((tmp_path / "mlflow-auth.ini").stat().st_mode) == 0o600
    assert "name the database of the users" in run("mlflow.sh", **given).stderr


def test_the_storage_job_names_what_is_missing() -> None:
    done = run("storage.py", POSTGRES_HOST="postgres", POSTGRES_USER="postgres")

    missing = "POSTGRES_PASSWORD, MLFLOW_DATABASE_PASSWORD, PREFECT_DATABASE_PASSWORD, BUCKETS"
    assert (done.returncode, done.stderr) == (1, f"storage: set {missing} in the environment\n")


@pytest.fixture
def address() -> Iterator[str]:
    """A server that is well at /health, and nowhere else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_health_is_an_answer_of_200_and_asks_no_proxy(address: str) -> None:
    assert run("health.py", f"{address}/health", http_proxy="http://127.0.0.1:9").returncode == 0
    assert run("health.py", f"{address}/ready").returncode != 0
    assert run("health.py", "http://127.0.0.1:9/health").returncode != 0
