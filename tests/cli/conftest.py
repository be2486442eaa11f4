"""A checkout, and the command line called in this process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from tests.conftest import EXAMPLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped settings and the built-in example's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / EXAMPLE).parent.mkdir(parents=True)
    (tmp_path / EXAMPLE).touch()
    (tmp_path / "exclude.txt").touch()
    return tmp_path


@pytest.fixture
def trueline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trueline", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def returning(value: Any):
    return lambda *_arguments, **_options: value


def raising(error: Exception):
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    return fail
