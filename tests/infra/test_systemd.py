"""The units: what each must have, and systemd's own check where systemd is installed."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNITS = sorted((ROOT / "infra/systemd").glob("*.service"))
PROGRAMS = "/srv/trueline/.venv/bin"
HARDENED = {
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "read-only",
    "ReadWritePaths": "/srv/trueline",
}


def service(unit: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read(unit)
    return dict(parser["Service"])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_again_and_may_write_in_its_folder_alone(unit: Path) -> None:
    settings = service(unit)

    assert settings["Restart"] == "always"
    assert settings["EnvironmentFile"] == "/etc/trueline.env"
    assert settings["User"] == "trueline"
    assert settings.items() >= HARDENED.items()
    program = Path(settings["ExecStart"].split()[0])
    assert program.parent == Path(PROGRAMS)
    assert (ROOT / ".venv/bin" / program.name).exists() or shutil.which(program.name)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    """Where there is no systemd, the test above is all that is checked."""
    if not (systemd := shutil.which("systemd-analyze")):
        return
    for each in UNITS:  # one names the others
        (tmp_path / each.name).write_text(each.read_text().replace(f"{PROGRAMS}/", f"{shutil.which('env')} "))
    done = subprocess.run(
        [systemd, "verify", "--man=no", tmp_path / unit.name], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_a_unit_for_each_server_and_the_schedule() -> None:
    assert [unit.stem for unit in UNITS] == ["trueline-mlflow", "trueline-prefect", "trueline-schedule"]


def test_the_environment_names_what_the_units_use() -> None:
    lines = (ROOT / "infra/systemd/trueline.env").read_text().splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    used = {part[2:-1] for unit in UNITS for part in service(unit)["ExecStart"].split() if part.startswith("${")}

    assert used == {"TRUELINE_CRON", "TRUELINE_TIMEZONE"}
    assert used <= named
