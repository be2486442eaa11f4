"""What travels with a registered model refuses weights that are not its own; the rest is tested where it is loaded."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.data.records import Message
from tasks.learning.batches import collate
from tasks.learning.models.loading import join_members, load_reward, load_scorer, new_reward_model, normalise_scores
from tasks.learning.models.outputs import completion_scores
from tasks.learning.models.saving import save_model
from tasks.registry.export import adapter
from tasks.registry.export.trueline_model import ChatModel, RewardModel
from tasks.settings.choices import Pooling
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


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_scores_are_pooled_as_the_saved_model_says(pooling: Pooling, tiny_model: Path, tmp_path: Path, params: Params):
    tokenizer, answers = load_tokenizer(tiny_model), ["yes", "no, thanks, not today"]
    save_model(new_reward_model(tiny_model, params, pooling), tokenizer, tmp_path / "reward")
    asked = [Message(role="user", content="Is it here?")]
    rows = collate([encode(tokenizer, asked, answer) for answer in answers])
    with torch.no_grad():
        expected = completion_scores(load_reward(tmp_path / "reward", params), rows).tolist()
    assert abs(expected[0] - expected[1]) > 0.01
    found = RewardModel(tmp_path / "reward").predict({"prompt": ["Is it here?"] * 2, "answer": answers})
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_scores_as_one(tiny_model: Path, tmp_path: Path, params: Params):
    members = [new_reward_model(tiny_model, params.model_copy(update={"seed": seed})) for seed in (1, 2, 3)]
    for place, member in enumerate(members):
        normalise_scores(member, bias=float(place), gain=2.0)
    join_members(members, 0.5)
    save_model(members[0], load_tokenizer(tiny_model), tmp_path / "reward", members[1:])
    rows = collate([encode(load_tokenizer(tiny_model), [Message(role="user", content="Is it here?")], "yes")])
    with torch.no_grad():
        [expected] = completion_scores(load_scorer(tmp_path / "reward", params), rows).tolist()
        [first] = completion_scores(members[0], rows).tolist()
    [found] = RewardModel(tmp_path / "reward").predict({"prompt": "Is it here?", "answer": "yes"})
    assert found == pytest.approx(expected, abs=1e-5)
    assert abs(found - first) > 0.1


def test_a_pooling_that_is_not_known_is_refused(tiny_model: Path, tmp_path: Path, params: Params):
    model = new_reward_model(tiny_model, params)
    model.config.score_pooling = "first"
    save_model(model, load_tokenizer(tiny_model), tmp_path / "reward")
    with pytest.raises(ValueError, match=r"score_pooling in config.json is first, not one of last, mean"):
        RewardModel(tmp_path / "reward")
    with pytest.raises(InputError, match="score_pooling first, which is not known"):
        load_reward(tmp_path / "reward", params)


def test_a_model_of_before_pooling_was_a_setting_reads_the_last_token(tiny_model: Path, tmp_path: Path, params: Params):
    model = new_reward_model(tiny_model, params)
    save_model(model, load_tokenizer(tiny_model), tmp_path / "reward")
    asked = {"prompt": "Is it here?", "answer": "no, thanks"}
    [expected] = RewardModel(tmp_path / "reward").predict(asked)
    config = tmp_path / "reward/config.json"
    config.write_text(config.read_text().replace('"score_pooling": "last",', ""))
    assert "pooling" not in config.read_text()
    assert RewardModel(tmp_path / "reward").predict(asked) == [expected]
