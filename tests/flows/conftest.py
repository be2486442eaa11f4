import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Prefect makes its home when it is imported: not in the checkout, and not in one test's folder.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")

from flows.stages import reproduce as module

PIPELINE = """
stages:
  one:
    cmd: cp raw.txt one.txt
    deps: [raw.txt]
    outs: [one.txt]
  two:
    cmd: cat one.txt one.txt > two.txt
    deps: [one.txt]
    outs: [two.txt]
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with two small stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "headline_figure", lambda stage: f"figure of {stage}")
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    Path("dvc.yaml").write_text(PIPELINE)
    Path("raw.txt").write_text("raw\n")
    return tmp_path


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)
