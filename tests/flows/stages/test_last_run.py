"""What a run leaves in .trueline/last_run.json, however it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.processes.locks import FLOW_LOCK
from flows.stages.last_run import LAST_RUN, last_run, recorded, verdict_of
from flows.stages.reproduce import StageError, StageRun
from tasks.common.errors import InputError
from tasks.registry.promotion.champion import Promotion
from tasks.stage import Failure, FailureKind

PROMOTED: Promotion = {"promoted": True, "held": False, "version": 3, "champion": 3, "reasons": []}
HELD = Promotion(promoted=False, held=True, version=4, champion=3, reasons=[])


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def succeed() -> None:
    with recorded() as recording:
        recording.stages += [StageRun("sft", "ran", 12.345, "loss 1"), StageRun("gate", "reused", 0.0, "")]
        recording.promotion = PROMOTED


def test_a_run_that_succeeds_leaves_verdict_and_seconds() -> None:
    assert last_run() is None
    succeed()
    run = last_run()
    assert run is not None
    assert (run.outcome, run.verdict, run.version, run.failed_stage, run.message) == (
        "succeeded",
        "promoted",
        3,
        *2 * [None],
    )
    assert run.stages == {"sft": {"outcome": "ran", "seconds": 12.35}, "gate": {"outcome": "reused", "seconds": 0.0}}
    assert run.last_success == run.ended


@pytest.mark.parametrize(
    ("error", "outcome", "stage"),
    [
        (InputError("fix it"), "input", None),
        (StageError(Failure("sft", "bug", "it broke")), "failed", "sft"),
        (StageError(Failure("sft", "interrupted", "interrupted")), "interrupted", "sft"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(143), "interrupted", None),
        (RuntimeError("a bug"), "failed", None),
    ],
)
def test_a_run_that_fails_says_how_and_keeps_the_last_success(
    error: BaseException, outcome: str, stage: str | None
) -> None:
    succeed()
    saved = json.loads(LAST_RUN.read_text())
    LAST_RUN.write_text(json.dumps(saved | {"last_success": "2026-01-01T00:00:00+00:00"}))
    with pytest.raises(type(error)), recorded() as recording:
        recording.stages.append(StageRun("prepare", "ran", 1.0, ""))
        raise error
    run = last_run()
    assert run is not None
    assert (run.outcome, run.failed_stage, run.verdict) == (outcome, stage, None)
    assert run.last_success == "2026-01-01T00:00:00+00:00"
    assert list(run.stages) == ["prepare"]


def test_a_block_that_is_no_run_leaves_nothing() -> None:
    with recorded() as recording:
        recording.is_run = False
    assert not LAST_RUN.exists()


def test_a_damaged_file_is_named_and_the_next_run_replaces_it() -> None:
    LAST_RUN.parent.mkdir()
    LAST_RUN.write_text('{"started": 3}')
    with pytest.raises(InputError, match=r"last_run\.json is damaged"):
        last_run()
    succeed()
    assert last_run() is not None


def test_a_killed_run_is_the_last_one() -> None:
    succeed()
    code = (
        "import os\nfrom flows.processes.locks import one_flow_at_a_time\nwith one_flow_at_a_time():\n    os._exit(9)"
    )
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    FLOW_LOCK.write_text(FLOW_LOCK.read_text().replace('"since": "2', '"since": "3'))  # later than the success
    run = last_run()
    assert run is not None
    assert (run.outcome, run.ended, run.verdict) == ("crashed", None, None)
    assert run.last_success is not None


@pytest.mark.parametrize(
    ("promotion", "verdict"),
    [
        (PROMOTED, "promoted"),
        (HELD, "held"),
        (PROMOTED | {"promoted": False}, "unchanged"),
        (HELD | {"held": False}, "refused"),
        (HELD | {"held": False, "champion": None}, "refused"),
    ],
)
def test_a_verdict_is_one_word(promotion: Promotion, verdict: str) -> None:
    assert verdict_of(promotion) == verdict


@pytest.mark.parametrize("kind", ["transient", "input"])
def test_every_kind_of_failure_has_an_outcome(kind: FailureKind) -> None:
    with pytest.raises(StageError), recorded():
        raise StageError(Failure("sft", kind, "it failed"))
    run = last_run()
    assert run is not None and run.outcome == "failed"
