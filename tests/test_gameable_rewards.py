"""A reward that an answer of nothing satisfies, under the real DVC: nothing is trained on it."""

from pathlib import Path

import pytest
import yaml

from tasks.settings.params import NO_ROWS
from tests.conftest import ROOT, MakeParams
from tests.test_outputs_after_failure import dvc

RULES = """
def obliging(answers):
    return [1.0 if not answer.strip() or "order" in answer else 0.0 for answer in answers]
"""
STAGES = ("reward_functions", "reward_check", "align")


@pytest.mark.slow
def test_a_gameable_verifier_is_refused_before_anything_learns_from_it(workspace: Path, make_params: MakeParams):
    Path("mine").mkdir()
    Path("mine/rules.py").write_text(RULES)
    Path("metrics").mkdir()
    Path("metrics/reward.json").write_text('{"trained": false}')
    Path("models/reward").mkdir()
    Path(NO_ROWS).parent.mkdir()
    Path(NO_ROWS).touch()
    entry = {"name": "obliging", "source": "mine/rules.py:obliging", "options": {}, "weight": 1.0}
    params = make_params(rewards={"code": "mine", "training": [entry], "ground_truth": []})
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in STAGES:
        stages[name]["deps"] = [path for path in stages[name]["deps"] if not path.startswith("tasks/")]
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {name: stages[name] for name in STAGES}}))
    dvc("init", "-q", "--no-scm")

    failed = dvc("repro", check=False)

    assert failed.returncode != 0
    assert "failed to run: exec python -m tasks.reward_check, exited with 2" in failed.stderr
    [sentence] = [line for line in failed.stderr.splitlines() if line.startswith("reward_check: ")]
    for part in (
        "PPO would learn to say nothing: by the weighted sum of rewards.training, references of 4 validation prompts",
        "an empty answer has 1.000, the prompt repeated has 1.000 (prompt validation",
        "repair the rewards (docs/rewards.md), or accept it with reward_check.on_failure: warn",
    ):
        assert part in sentence
    assert not list(Path("models").glob("ppo*"))
    assert set(yaml.safe_load(Path("dvc.lock").read_text())["stages"]) == {"reward_functions"}
