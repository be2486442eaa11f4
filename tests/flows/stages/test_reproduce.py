import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.stages.reproduce import StageError, reproduce
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import plan

pytestmark = pytest.mark.slow

FAILS = """
stages:
  sft:
    cmd: mkdir -p .trueline && cp note.json .trueline/failure.json && exit 1
    outs: [never]
"""


def walk() -> list[str]:
    return [reproduce(stage).outcome for stage in plan()]


def test_ran_and_reused_are_distinguished(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert walk() == ["ran", "ran"]
    printed = capsys.readouterr()
    assert printed.out == ""  # a command's JSON goes there
    assert "> cp raw.txt one.txt" in printed.err
    assert "git add" not in printed.err

    assert walk() == ["reused", "reused"]
    Path("raw.txt").write_text("other\n")
    assert walk() == ["ran", "ran"]
    Path("raw.txt").write_text("raw\n")  # both are in DVC's cache of earlier runs
    assert walk() == ["reused", "reused"]
    assert Path("two.txt").read_text() == "raw\nraw\n"


def test_the_walk_leaves_the_same_lock_as_plain_dvc(repository: Path) -> None:
    walk()
    walked = Path("dvc.lock").read_bytes()
    Path("dvc.lock").unlink()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--force"], check=True, capture_output=True)

    assert Path("dvc.lock").read_bytes() == walked


def test_row_has_stage_seconds_and_figure(repository: Path) -> None:
    row = reproduce("one")

    assert (row.stage, row.outcome, row.figure) == ("one", "ran", "figure of one")
    assert 0 < row.seconds < 60


def fail(kind: str) -> None:
    Path("dvc.yaml").write_text(FAILS)
    Path("note.json").write_text(json.dumps({"stage": "sft", "kind": kind, "message": "a.jsonl row 3 is cut off"}))
    reproduce("sft")


def test_bad_input_is_the_users_to_fix(repository: Path) -> None:
    with pytest.raises(InputError, match=r"^sft: a.jsonl row 3 is cut off$"):
        fail("input")


@pytest.mark.parametrize("kind", ["transient", "bug", "interrupted"])
def test_other_failures_keep_their_kind(repository: Path, kind: str) -> None:
    with pytest.raises(StageError) as caught:
        fail(kind)

    assert caught.value.failure.kind == kind


def test_an_older_failure_is_not_blamed(repository: Path) -> None:
    Path(".trueline").mkdir()
    Path(".trueline/failure.json").write_text(json.dumps({"stage": "one", "kind": "input", "message": "old"}))
    Path("raw.txt").unlink()

    with pytest.raises(StageError, match="DVC refused it"):
        reproduce("one")
