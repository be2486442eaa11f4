"""Reward models and critics on the policy's base score as those that are loaded whole, and hold no copy of it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from tasks.learning.batches import collate
from tasks.learning.models.forward import compute_dtype, is_packed, unwrapped
from tasks.learning.models.loading import (
    join_members,
    load_policy,
    load_reward,
    load_scorer,
    new_reward_model,
    normalise_scores,
    with_adapters,
)
from tasks.learning.models.outputs import completion_log_probs, completion_scores, completion_values
from tasks.learning.models.saving import save_model
from tasks.learning.models.shared_base import SharedBase, shared_base
from tasks.learning.sharding import trainable_weights
from tasks.settings.params import Params
from tests.conftest import MakeParams
from tests.families import ROWS

QUANTISED = {"quantize": "nf4"}


@pytest.fixture(params=[{"quantize": None}, QUANTISED], ids=["bf16", "nf4"])
def settings(request: pytest.FixtureRequest, make_params: MakeParams) -> Params:
    return make_params(runtime={"precision": "bf16"}, lora={"rank": 2, **request.param})


def trained_reward(base: Path, folder: Path, params: Params, members: int = 1) -> None:
    """Save reward models with adapters and heads that are not as they began."""
    models = []
    for number in range(members):
        torch.manual_seed(number)
        model = with_adapters(new_reward_model(base, params, "mean"), params.lora)
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_A" not in name:
                weight.data += 0.1 * torch.randn_like(weight)
        normalise_scores(model, 0.5, 2.0)
        models.append(model)
    join_members(models, 0.25)
    save_model(models[0], AutoTokenizer.from_pretrained(base), folder, models[1:])


def base_of(folder: Path, params: Params) -> tuple[Any, SharedBase]:
    policy = load_policy(folder, params, trainable=True)
    shared = shared_base(policy, params)
    assert shared is not None
    return with_adapters(policy, params.lora), shared


def storages(model: nn.Module) -> dict[int, int]:
    """Bytes of a model's tensors by where they lie."""
    return {each.untyped_storage().data_ptr(): each.nbytes for each in [*model.parameters(), *model.buffers()]}


@pytest.mark.parametrize("members", [1, 2])
def test_rewards_are_those_of_the_whole_model_up_to_rounding(
    settings: Params, members: int, tiny_model: Path, tmp_path: Path
):
    trained_reward(tiny_model, tmp_path / "reward", settings, members)
    policy, shared = base_of(tiny_model, settings)
    scorer = shared.scorer(tmp_path / "reward")
    assert scorer is not None
    batch = collate(ROWS)
    with torch.no_grad():
        found, whole = (
            completion_scores(scorer, batch),
            completion_scores(load_scorer(tmp_path / "reward", settings), batch),
        )
    # The whole model rounds weights and adapters together, to bf16, and is not quantised.
    assert (found - whole).abs().max() < (0.3 if settings.lora.quantize else 0.03) * whole.abs().max()
    assert whole.std() > 0.01
    assert not any(weight.requires_grad for weight in scorer.parameters())
    own = {place: size for place, size in storages(scorer).items() if place not in storages(policy)}
    # Per member 2 layers of q, k, v, o (32 to 32) and gate, up, down (32 to 48 and back): factors of rank 2 in fp32,
    # and a head of 32.
    assert sum(own.values()) == members * 4 * (2 * 2 * (4 * 64 + 3 * 80) + 32)


def test_what_was_trained_is_found_again_exactly(settings: Params, tiny_model: Path, tmp_path: Path):
    """Nearer than the whole model: the adapters are those that were trained, on the base that they were trained on."""
    torch.manual_seed(0)
    model = with_adapters(new_reward_model(tiny_model, settings, "mean"), settings.lora)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            weight.data += 0.1 * torch.randn_like(weight)
    expected = completion_scores(model, collate(ROWS)).detach()
    save_model(model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "reward")
    _, shared = base_of(tiny_model, settings)
    scorer = shared.scorer(tmp_path / "reward")
    assert scorer is not None
    assert is_packed(scorer)
    assert compute_dtype(scorer) == torch.bfloat16
    assert completion_scores(scorer, collate(ROWS)).equal(expected)


def test_a_critic_begins_as_the_reward_model_and_learns_alone(settings: Params, tiny_model: Path, tmp_path: Path):
    trained_reward(tiny_model, tmp_path / "reward", settings)
    policy, shared = base_of(tiny_model, settings)
    scorer, critic = shared.scorer(tmp_path / "reward"), shared.critic(tmp_path / "reward", settings.lora)
    assert scorer is not None
    assert critic is not None
    batch = collate(ROWS)
    before, scores = completion_log_probs(policy, batch).detach(), completion_scores(scorer, batch).detach()
    torch.testing.assert_close(completion_scores(critic, batch).detach(), scores, atol=1e-5, rtol=1e-5)
    learning = trainable_weights(critic)
    whole = with_adapters(load_reward(tmp_path / "reward", settings, trainable=True), settings.lora)
    assert learning.keys() == trainable_weights(whole).keys()
    completion_values(critic, batch).square().sum().backward()
    for weight in learning.values():
        assert weight.grad is not None
        weight.data += 0.1
    assert not completion_scores(critic, batch).allclose(scores, atol=1e-3)
    assert completion_scores(scorer, batch).equal(scores)
    assert completion_log_probs(policy, batch).equal(before)
    assert all(weight.grad is None for weight in policy.parameters())


def test_a_critic_without_reward_model_gives_0(settings: Params, tiny_model: Path):
    _, shared = base_of(tiny_model, settings)
    critic = shared.critic(None, settings.lora)
    assert critic is not None
    assert not completion_values(critic, collate(ROWS)).any()
    assert any("lora_B" in name for name in trainable_weights(critic))


def test_what_cannot_be_shared_is_loaded_whole(
    make_params: MakeParams, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    params = make_params(runtime={"precision": "bf16"}, lora={"rank": 2})
    trained_reward(tiny_model, tmp_path / "reward", params)
    other = load_policy(tiny_model, make_params(), trainable=False)
    other.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 3] += 0.01
    save_model(other, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        _, shared = base_of(tmp_path / "other", params)
        assert shared.scorer(tmp_path / "reward") is None
    assert f"its weights are not those of {tmp_path / 'other'} and its adapter" in caplog.text
    caplog.clear()
    trained_reward(tiny_model, tmp_path / "reward", make_params(lora={"rank": 2}))
    _, shared = base_of(tiny_model, params)
    assert shared.critic(tmp_path / "reward", params.lora) is None
    assert "it has no adapter" in caplog.text
    for whole in (make_params(lora={"rank": 2}), make_params(runtime={"precision": "bf16"})):
        assert shared_base(load_policy(tiny_model, whole, trainable=True), whole) is None


def test_layers_computed_again_give_the_same_gradients(make_params: MakeParams, tiny_model: Path, tmp_path: Path):
    def gradients(*, again: bool) -> list[Tensor]:
        params = make_params(runtime={"precision": "bf16", "gradient_checkpointing": again}, lora={"rank": 2})
        trained_reward(tiny_model, tmp_path / "reward", params)
        torch.manual_seed(5)
        _, shared = base_of(tiny_model, params)
        critic = shared.critic(tmp_path / "reward", params.lora)
        assert critic is not None
        calls: list[int] = []
        unwrapped(critic).get_submodule("model.layers.0.mlp").register_forward_pre_hook(lambda *_: calls.append(1))
        completion_values(critic, collate(ROWS)).square().sum().backward()
        assert len(calls) == (2 if again else 1)
        return [weight.grad for weight in critic.parameters() if weight.grad is not None]

    for one, other in zip(gradients(again=False), gradients(again=True), strict=True):
        assert one.equal(other)
