"""What `make services` starts, tells and leaves."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infra.services import postgres
from infra.services.services import Services
from tests.conftest import ROOT
from tests.registry.conftest import shell
from tests.test_children import eventually

READY_SECONDS = 240


@pytest.fixture
def printed(up: Services, tmp_path: Path) -> str:
    """What the command prints that goes on with the servers' folder, until it is ended by Ctrl+C."""
    up.stop()
    output = tmp_path / "printed"
    command = [sys.executable, "-m", "infra.services", "--state", str(up.folder)]
    with output.open("w") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process:
        try:
            assert eventually(lambda: "Ctrl+C" in output.read_text() or process.poll() is not None, READY_SECONDS)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 0, output.read_text()
    return output.read_text()


@pytest.mark.timeout(600)
def test_the_command_goes_on_with_addresses_and_data_and_shows_no_password(up: Services, printed: str) -> None:
    environment = up.folder / "env"
    assert f"  . {environment} && .venv/bin/trueline schedule" in printed
    sourced = shell("sh", "-c", f". {environment} && env", cwd=ROOT).stdout.splitlines()
    assert {f"{name}={value}" for name, value in up.environment().items()} <= set(sourced)

    secrets = [line.rpartition(":")[2] for line in up.passwords.read_text().splitlines()]
    secrets.append(up.keys.read_text().rpartition("= ")[2].strip())
    assert min(map(len, secrets)) >= 32
    for file in (up.passwords, up.keys):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    logs = [file.read_text() for file in (up.folder / "logs").iterdir()]
    for text in (printed, environment.read_text(), (up.folder / "dvc/config").read_text(), *logs):
        assert not any(secret in text for secret in secrets)

    up.start()
    count = "SELECT count(*) FROM alembic_version"
    for role in postgres.ROLES:
        assert postgres.run_sql(up.ports["postgres"], up.passwords, count, database=role).strip() == "1"
