"""What `make services` starts, tells and leaves."""

import re
import stat
from pathlib import Path

from infra.services import postgres
from infra.services.services import Services
from tests.services.conftest import Started


def test_the_command_tells_what_to_copy_and_ends_on_ctrl_c(started: Started, place: Path) -> None:
    assert started.returncode == 0, started.printed
    printed = dict(re.findall(r"^  export (\w+)=(.+)$", started.printed, flags=re.MULTILINE))
    assert list(printed) == ["MLFLOW_TRACKING_URI", "PREFECT_API_URL", "DVC_SYSTEM_CONFIG_DIR"]
    assert (place / "env").read_text() == "".join(f"export {name}={value}\n" for name, value in printed.items())


def test_passwords_are_in_private_files_alone(started: Started, place: Path) -> None:
    secrets = [line.rpartition(":")[2] for line in (place / "pgpass").read_text().splitlines()]
    secrets.append((place / "aws").read_text().rpartition("= ")[2].strip())
    assert min(map(len, secrets)) >= 32
    for file in (place / "pgpass", place / "aws"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    logs = [file.read_text() for file in (place / "logs").iterdir()]
    for text in (started.printed, (place / "env").read_text(), (place / "dvc/config").read_text(), *logs):
        assert not any(secret in text for secret in secrets)


def test_started_again_they_have_the_same_addresses_and_data(started: Started, up: Services) -> None:
    assert up.environment()["MLFLOW_TRACKING_URI"] in started.printed
    count = "SELECT count(*) FROM alembic_version"
    for role in postgres.ROLES:
        assert postgres.run_sql(up.ports["postgres"], up.passwords, count, database=role).strip() == "1"
