"""A second clone with a full remote: it computes nothing, and knows that its candidate is the champion."""

import json
import subprocess
from pathlib import Path

import pytest

from flows.events.freshness import check_freshness
from flows.pipeline.steps import Result, Steps, finish, name_opponent
from flows.stages.fetching import Fetching
from flows.stages.last_run import Recording
from flows.stages.walk import Walk
from tasks.registry.dvc_outputs.graph import graph_status
from tasks.registry.lineage import sync
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import aliases, commit, dvc, repro, run_again

pytestmark = pytest.mark.slow


def run() -> Result:
    """A run without Prefect and without a report, which the stages of these tests have no page for."""
    params = load_params()
    steps = Steps(
        name_opponent, Walk.bring_up_to_date, sync.sync, champion.register, check_freshness, id, champion.promote
    )
    graph = name_opponent(params, graph_status())
    return finish(steps, params, Walk(graph, Fetching(graph)), Recording("now"))


@pytest.fixture
def clone(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of a checkout whose champion was compared with SFT; its results are in a remote, MLflow is shared."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracked / 'mlflow.db'}")
    monkeypatch.setattr("flows.stages.walk.headline_figure", str)
    monkeypatch.setattr("flows.stages.reproduce.headline_figure", str)
    champion.promote(load_params())
    dvc("remote", "add", "-d", "store", str(tracked.parent / "store"), cwd=tracked)
    dvc("push", "-q", "--run-cache", cwd=tracked)
    commit(tracked)
    folder = tracked.parent / "clone"
    subprocess.run(["git", "clone", "-q", str(tracked), str(folder)], check=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_clone_without_dvc_lock_knows_the_champion_when_it_sees_it(clone: Path, capfd) -> None:
    Path("dvc.lock").unlink()
    result = run()
    assert {row.outcome for row in result.stages} == {"reused"}
    assert "Running stage" not in capfd.readouterr().err
    assert result.promotion["reasons"] == ["Version 1 is the champion already."]
    assert aliases()["trueline-policy"] == {"champion": 1}
    assert json.loads(Path("opponent.json").read_text())["name"] == "sft"
    assert Path("dvc.lock").read_bytes() == Path("../checkout/dvc.lock").read_bytes()
    assert not name_opponent(load_params(), graph_status()).stale


def test_a_candidate_that_is_the_champion_again_is_compared_as_it_was(challenged: Path) -> None:
    params = load_params()
    assert champion.promote(params)["promoted"]
    compared = Path("opponent.json").read_bytes()
    run_again(content=3)  # another candidate, which meets version 2
    assert json.loads(Path("opponent.json").read_text())["version"] == 2
    before = Path("dvc.lock").read_bytes()
    run_again(content=2)  # who would meet itself, by what is known before the run
    assert json.loads(Path("opponent.json").read_text())["version"] == 2
    name_opponent(params, graph_status())  # as the flow does after align
    assert Path("opponent.json").read_bytes() == compared
    repro()
    assert Path("dvc.lock").read_bytes() != before
    assert champion.promote(params)["reasons"] == ["Version 2 is the champion already."]
