import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import InputError
from tasks.trial import trial
from tests.conftest import MakeParams

SOUND: dict[str, Any] = {
    "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9, "ties": 0, "pairs": 120},
    "calibration_error": 0.05,
    "length_correlation": None,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()


def tried(make_params: MakeParams, figures: dict[str, Any], method: str = "ppo", threshold: float = 0.6) -> bytes:
    Path("metrics/reward.json").write_text(json.dumps(figures))
    trial(make_params(align={"method": method}, gate={"min_reward_accuracy": threshold}))
    return Path("metrics/trial.json").read_bytes()


def test_a_sound_reward_model_passes_and_its_threshold_leaves_no_trace(make_params: MakeParams):
    assert tried(make_params, SOUND, threshold=0.6) == tried(make_params, SOUND, threshold=0.7)


def test_below_the_threshold_the_pipeline_stops_with_the_figures(make_params: MakeParams):
    with pytest.raises(InputError) as caught:
        tried(make_params, SOUND, threshold=0.71)
    assert str(caught.value).startswith(
        "PPO would learn from a reward model that fails its trial: "
        "held-out accuracy 0.800 [0.700, 0.900] on 120 pairs, calibration error 0.050, "
        "correlation with length unknown; "
        "the lower bound of the accuracy must reach 0.71 "
        "(gate.min_reward_accuracy): "
    )
    assert not Path("metrics/trial.json").exists()


@pytest.mark.parametrize("figures", [{}, {"accuracy": None}, {"accuracy": {"low": float("nan")}}])
def test_a_missing_figure_does_not_pass(make_params: MakeParams, figures: dict[str, Any]):
    with pytest.raises(InputError, match=r"held-out accuracy unknown \[unknown, unknown\] on unknown pairs"):
        tried(make_params, figures)


def test_dpo_does_not_learn_from_the_reward_model(make_params: MakeParams):
    assert tried(make_params, SOUND, method="dpo", threshold=0.71)
