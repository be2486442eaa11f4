"""What is read off models of several families agrees with a naive computation, whatever lies in the padding."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from tasks.common.errors import InputError
from tasks.common.files import read_json
from tasks.learning.batches import collate
from tasks.learning.models.forward import unwrapped
from tasks.learning.models.loading import (
    context_length,
    device_of,
    load_policy,
    load_reward,
    new_reward_model,
    normalise_scores,
    reference,
    score_head,
    with_adapters,
)
from tasks.learning.models.merging import merged
from tasks.learning.models.outputs import completion_log_probs, completion_scores, completion_values
from tasks.learning.models.saving import save_model
from tasks.settings.params import Lora, Params
from tests.conftest import MakeParams
from tests.families import FAMILIES, ROWS, SHAPE, causal, scoring

LORA = Lora(rank=4, alpha=8, targets="all-linear", quantize=None)


def test_normalised_scores_are_shifted_then_scaled(tmp_path: Path):
    model, batch = scoring(FAMILIES["llama"]), collate(ROWS)
    raw, raw_values = completion_scores(model, batch), completion_values(model, batch)
    normalise_scores(model, bias=0.5, gain=2.0)
    torch.testing.assert_close(completion_scores(model, batch), (raw + 0.5) * 2)
    expected = torch.where(batch.completion_mask, (raw_values + 0.5) * 2, 0.0)
    torch.testing.assert_close(completion_values(model, batch), expected)
    model.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert (config["score_bias"], config["score_gain"]) == (0.5, 2.0)


def test_loading_gives_fp32_without_dropout(tiny_model: Path, params: Params):
    policy = load_policy(tiny_model, params, trainable=True)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert not policy.training
    assert all(weight.requires_grad for weight in policy.parameters())
    assert not any(weight.requires_grad for weight in load_policy(tiny_model, params, trainable=False).parameters())


def test_a_new_head_has_variance_one_over_hidden_size_plus_one(
    tiny_model: Path, params: Params, make_params: MakeParams
):
    head = score_head(new_reward_model(tiny_model, params))
    assert isinstance(head, nn.Linear)
    assert head.bias is None
    assert head.weight.shape == (1, 32)
    generator = torch.Generator().manual_seed(params.seed)
    expected = torch.empty(1, 32).normal_(std=33**-0.5, generator=generator)
    assert head.weight.data.equal(expected)
    other = score_head(new_reward_model(tiny_model, make_params(seed=8)))
    assert isinstance(other, nn.Linear)
    assert not other.weight.equal(head.weight)


def test_saving_and_loading_give_the_same_weights(tiny_model: Path, params: Params, tmp_path: Path):
    tokenizer, batch = AutoTokenizer.from_pretrained(tiny_model), collate(ROWS)
    model = new_reward_model(tiny_model, params)
    save_model(model, tokenizer, tmp_path / "out")
    again = load_reward(tmp_path / "out", params)
    assert completion_scores(again, batch).equal(completion_scores(model, batch))
    assert not any("tmp" in path.read_text() for path in (tmp_path / "out").glob("*.json"))  # no path of a machine


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_start_at_the_reference_and_are_merged_when_saved(family: str, tmp_path: Path, tiny_model: Path):
    policy, batch = causal(FAMILIES[family]), collate(ROWS)
    before = completion_log_probs(policy, batch).detach()
    adapted = with_adapters(policy, LORA)
    trainable = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert completion_log_probs(adapted, batch).equal(before)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1
    moved = completion_log_probs(adapted, batch).detach()
    assert not torch.allclose(moved, before, atol=1e-3)
    with reference(adapted) as model:
        assert completion_log_probs(model, batch).equal(before)
    save_model(adapted, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(completion_log_probs(whole, batch), moved, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_the_head_learns_beside_adapters(tiny_model: Path, params: Params, tmp_path: Path):
    model = with_adapters(new_reward_model(tiny_model, params), LORA)
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert any("score" in name for name in trainable)
    batch = collate(ROWS)
    completion_scores(model, batch).sum().backward()
    score_head(model).get_parameter("modules_to_save.default.weight").data += 1.0
    scores = completion_scores(model, batch).detach()
    save_model(model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "out")
    torch.testing.assert_close(completion_scores(load_reward(tmp_path / "out", params), batch), scores)


@pytest.mark.parametrize("rank", [0, 2])
def test_activations_computed_again_give_the_same_gradients(
    rank: int, tiny_model: Path, params: Params, make_params: MakeParams
):
    def gradients(settings: Params) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(1)  # of the adapters
        policy = with_adapters(
            load_policy(tiny_model, settings, trainable=True),
            Lora(rank=rank, alpha=4, targets="all-linear", quantize=None),
        )
        passes = []
        first = unwrapped(policy).get_submodule("model.layers.0.mlp")
        first.register_forward_pre_hook(lambda *_: passes.append(1))
        completion_log_probs(policy, collate(ROWS)).sum().backward()
        return [weight.grad for weight in policy.parameters() if weight.grad is not None], len(passes)

    (expected, once), (found, twice) = (
        gradients(settings) for settings in (params, make_params(runtime={"gradient_checkpointing": True}))
    )
    assert (once, twice) == (1, 2)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_rank_zero_changes_nothing(tiny_model: Path, params: Params):
    policy = load_policy(tiny_model, params, trainable=True)
    assert with_adapters(policy, params.lora) is policy
    assert merged(policy) is policy
    assert unwrapped(policy) is policy


def test_only_adapters_hold_their_own_reference(tiny_model: Path, params: Params):
    with pytest.raises(TypeError, match="adapters"), reference(load_policy(tiny_model, params, trainable=True)):
        pass


def test_adapter_targets_that_name_nothing(tiny_model: Path, params: Params):
    with pytest.raises(InputError, match=r"lora.targets \['nowhere'\] does not fit the model"):
        with_adapters(
            load_policy(tiny_model, params, trainable=True), Lora(rank=2, alpha=4, targets=["nowhere"], quantize=None)
        )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_context_length(family: str):
    assert context_length(causal(FAMILIES[family])) == 64


def test_a_folder_without_model(tmp_path: Path, params: Params):
    with pytest.raises(InputError, match="holds no model that can be used here"):
        load_policy(tmp_path, params, trainable=False)


@pytest.fixture
def spoilt(tiny_model: Path, tmp_path: Path, params: Params) -> Path:
    """A language model, and in scored/ a reward model, each without a weight of its second layer."""
    shutil.copytree(tiny_model, tmp_path / "model")
    new_reward_model(tiny_model, params).save_pretrained(tmp_path / "model/scored")
    for folder in (tmp_path / "model", tmp_path / "model/scored"):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model"


def test_no_weight_is_ever_drawn_at_random_but_a_new_head(spoilt: Path, tiny_model: Path, params: Params):
    for load, folder in ((load_policy, spoilt), (load_reward, spoilt / "scored")):
        with pytest.raises(InputError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight\)"):
            load(folder, params, trainable=False)
    with pytest.raises(InputError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight\)"):
        new_reward_model(spoilt, params)
    with pytest.raises(InputError, match=r"missing score\.weight; unexpected lm_head\.weight"):
        load_reward(tiny_model, params)
    with pytest.raises(InputError, match=r"missing lm_head\.weight; unexpected score\.weight"):
        load_policy(saved_reward(tiny_model, spoilt.parent / "whole", params), params, trainable=False)


def saved_reward(base: Path, folder: Path, params: Params) -> Path:
    new_reward_model(base, params).save_pretrained(folder)
    return folder


def test_a_weight_of_another_shape_is_named(tiny_model: Path, tmp_path: Path, params: Params):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_policy, load_reward):
        with pytest.raises(InputError, match=r"mismatched model\.norm\.weight of 31 for 32"):
            load(folder, params, trainable=False)


def test_a_family_without_scalar_head(tmp_path: Path, params: Params):
    from transformers import CohereConfig

    AutoModelForCausalLM.from_config(CohereConfig(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"Cohere|cohere"):
        new_reward_model(tmp_path, params)


def test_a_head_of_another_name(tiny_model: Path, params: Params):
    policy = load_policy(tiny_model, params, trainable=False)
    with pytest.raises(InputError, match="models of type llama have no scalar head"):
        score_head(policy)


def test_cuda_asked_for_where_there_is_none(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"runtime\.device is cuda"):
        device_of(make_params(runtime={"device": "cuda"}))
    assert device_of(make_params(runtime={"device": "auto"})).type == "cpu"
