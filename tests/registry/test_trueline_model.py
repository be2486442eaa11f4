"""What travels with a registered model refuses weights that are not its own; the rest is tested where it is loaded."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tasks.common.errors import InputError
from tasks.learning.models.loading import new_reward_model
from tasks.registry.export import adapter
from tasks.registry.export.trueline_model import ChatModel, RewardModel
from tasks.settings.params import Params


def test_a_model_that_lacks_a_weight_is_not_served(tiny_model: Path, tmp_path: Path, params: Params):
    policy, reward = Path(shutil.copytree(tiny_model, tmp_path / "policy")), tmp_path / "reward"
    shutil.copytree(tiny_model, reward)
    new_reward_model(tiny_model, params).save_pretrained(reward)
    ChatModel(policy, {})
    RewardModel(reward)
    for folder in (policy, reward):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.0.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"do not belong to its config\.json \(model\.layers\.0\.mlp\.up_proj\.weight\)"
    ):
        ChatModel(policy, {})
    with pytest.raises(ValueError, match=r"\(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        RewardModel(reward)
    with pytest.raises(InputError, match=r"missing model\.layers\.0\.mlp\.up_proj\.weight"):
        adapter._load(policy)
