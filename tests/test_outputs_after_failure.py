"""A stage that fails under `dvc repro`, which deletes its outputs first: those of before are there again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.stage import last_failure
from tests.test_bad_input import KINDS, OUTPUTS, ROOT, assert_in_order, contents


@pytest.mark.slow
def test_a_failing_stage_keeps_the_outputs_that_dvc_has_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_repository()
    dvc("repro")
    before, lock = contents(), Path("dvc.lock").read_bytes()
    assert {path.as_posix() for path in OUTPUTS["prepare"]} <= before.keys()
    whole = Path("preferences.jsonl").read_bytes()
    Path("preferences.jsonl").write_bytes(whole[:-5])

    failed = dvc("repro", check=False)

    sentences = [line for line in failed.stderr.splitlines() if line.startswith("prepare: ")]
    assert failed.returncode != 0
    assert len(sentences) == 1
    assert_in_order(("preferences.jsonl row 60 is not valid JSON", "fix or remove the row"), sentences[0])
    assert "Traceback" not in failed.stderr
    assert contents() == before | {"preferences.jsonl": whole[:-5]}
    assert Path("dvc.lock").read_bytes() == lock
    failure = last_failure()
    assert failure is not None
    assert f"prepare: {failure.message}" == sentences[0]


def prepare_repository() -> None:
    """A DVC repository with the pipeline's own first stage, its code left where it lies, and three sources."""
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    stage = pipeline["stages"]["prepare"]
    stage["deps"] = [path for path in stage["deps"] if not path.startswith("tasks/")]
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"prepare": stage}}))
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for kind in KINDS:
        settings["prepare"][kind]["source"] = f"{kind}.jsonl"
        row = (
            {"prompt": "", "response": "a"}
            if kind == "demonstrations"
            else {"prompt": "", "chosen": "a", "rejected": "b"}
        )
        rows = [row | {"prompt": f"question {number}"} for number in range(60)]
        Path(f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(ROOT / "exclude.txt", "exclude.txt")
    shutil.copytree(ROOT / "infra", "infra")


def dvc(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run DVC as people do, with this Python for its stages and nothing saved outside the working folder."""
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")}
    environment |= {"PATH": python, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    environment |= {"DVC_SITE_CACHE_DIR": str(Path.cwd().parent / "dvc-site"), "GIT_CONFIG_GLOBAL": os.devnull}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)
