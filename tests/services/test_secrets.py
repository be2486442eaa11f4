"""The password of an address is in nothing that Trueline prints, writes or sends."""

from pathlib import Path

import pytest

from infra.services import postgres
from infra.services.services import Services
from tests.services.conftest import finished, start

COMMANDS = ("run", "doctor", "why champion", "report")


def test_databases_named_with_a_password(up: Services, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's database is opened directly, and Prefect's by the server that a run starts."""
    lines = up.passwords.read_text().splitlines()
    secrets = {line.split(":")[3]: line.split(":")[4] for line in lines}
    mlflow, prefect = (f"{role}:{secrets[role]}@{up.database(role)}" for role in postgres.ROLES)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://{mlflow}")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://{prefect}")
    monkeypatch.delenv("PREFECT_API_URL")
    Path("metrics/gate.json").unlink()  # or the run would need no server
    printed = [finished(start(*command.split())).stdout for command in COMMANDS]
    assert not any("Traceback" in text for text in printed)
    assert "Version 1 is champion now." in printed[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://{mlflow.replace('mlflow:', 'nobody:')}")
    refused = finished(start("why", "champion"))
    assert refused.returncode == 2
    assert "Traceback" not in refused.stdout
    files = [path for path in Path().rglob("*") if path.is_file() and ".git" not in path.parts]
    for text in (*printed, refused.stdout, *(path.read_bytes().decode("utf-8", "replace") for path in files)):
        assert not any(secret in text for secret in secrets.values())
