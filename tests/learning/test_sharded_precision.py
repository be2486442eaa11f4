"""Shards in bf16: what is sampled from is gathered weight by weight, and is what one process samples from."""

from pathlib import Path

import pytest
import yaml

from tasks.ppo import ppo
from tests.conftest import MakeParams, NotedRun
from tests.learning.test_distributed import PPO, curve, launch, replace_reward_model


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_two_processes_sample_and_train_in_bf16_as_one_does(
    rank: int, workspace: Path, make_params: MakeParams, noted_run: NotedRun
):
    params = make_params(ppo=PPO, runtime={"precision": "bf16"}, lora={"rank": rank})
    replace_reward_model(params)
    ppo(params)
    expected = curve(Path("curves/ppo.csv"))
    Path("settings.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    launch("fsdp", "ppo")
    for one, other in zip(curve(Path("together/ppo/ppo.csv")), expected, strict=True):
        assert one["response_length"] == other["response_length"]  # the same answers
        assert one["reward"] == pytest.approx(other["reward"], abs=0.02)
        assert one["rollout_kl"] == pytest.approx(other["rollout_kl"], abs=1e-4)
        assert one["kl"] == pytest.approx(other["kl"], abs=0.01)
        assert one["grad_norm_policy"] == pytest.approx(other["grad_norm_policy"], rel=0.05, abs=1e-3)
