"""A critic on the policy's backbone: one forward pass and one gradient for the sum of two separate ones."""

from typing import Any

import pytest
import torch
from torch import nn

from tasks.learning.models.forward import (
    last_states,
    pack_if_exact,
    plain_head,
    predicting,
    recompute_layers,
    unwrapped,
)
from tasks.learning.models.loading import ValueHead
from tasks.learning.models.outputs import spread, token_outputs
from tasks.learning.ppo import trainer as trainer_module
from tasks.learning.ppo.policy_gradient import Counts, policy_loss, value_loss
from tasks.learning.ppo.scoring import PPOModels, Rollouts
from tasks.learning.ppo.trainer import PPOTrainer
from tests.learning.test_ppo_trainer import PROMPTS, have_moved, trained_on_a_known_reward, weights
from tests.tiny import tiny_models, tiny_params


def a_round(models: PPOModels, **ppo: Any) -> tuple[PPOTrainer, Rollouts]:
    trainer = PPOTrainer(models, tiny_params(critic="shared", **ppo))
    return trainer, trainer.score(trainer.sample(PROMPTS, seed=1), kl_coefficient=0.05)


def value_head(models: PPOModels) -> ValueHead:
    assert isinstance(models.critic, ValueHead)
    return models.critic


def models_that_have_learned() -> PPOModels:
    """With a head that is no longer 0, so that its gradient reaches the shared backbone."""
    models = tiny_models("shared")
    torch.manual_seed(2)
    nn.init.normal_(value_head(models).weight, std=0.3)
    return models


def gradients(*networks: nn.Module) -> list[torch.Tensor]:
    return [weight.grad.clone() for network in networks for weight in network.parameters() if weight.grad is not None]


@pytest.mark.parametrize("tokens", [20, 1000], ids=["in parts", "whole"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["saved", "recomputed"])
def test_the_gradient_is_the_weighted_sum_of_two_separate_ones(
    tokens: int, recomputes: bool, monkeypatch: pytest.MonkeyPatch
):
    models, found = models_that_have_learned(), []
    pack_if_exact(unwrapped(models.policy))
    if recomputes:
        unwrapped(models.policy).gradient_checkpointing_enable({"use_reentrant": False})
        recompute_layers(models.policy)
    settings: dict[str, Any] = {"entropy_bonus": 0.01, "value_weight": 0.3, "num_minibatches": 1, "epochs": 1}
    trainer, rollouts = a_round(models, runtime={"max_tokens_per_micro_batch": tokens}, **settings)
    # as in a later step of a round: both have moved since
    rollouts = rollouts._replace(
        log_probs=rollouts.log_probs - 0.1 * rollouts.mask, values=rollouts.values - 0.1 * rollouts.mask
    )

    def take_down(_accelerator: object, network: nn.Module, *_: object, **__: object) -> float:
        found.extend(gradients(network))
        return 0.0

    monkeypatch.setattr(trainer_module, "update", take_down)
    [figures] = trainer.steps(rollouts, 1, "no checkpoint")

    networks, count = (models.policy, value_head(models)), int(rollouts.mask.sum())
    for network in networks:
        network.zero_grad()
    log_probs, entropies, _ = token_outputs(models.policy, rollouts.batch)
    policy = policy_loss(
        log_probs,
        rollouts.log_probs,
        rollouts.advantages,
        rollouts.mask,
        counts=Counts(count, len(rollouts.mask), 6),
        clip=0.2,
    )
    (policy.loss - 0.01 * entropies.sum() / count).backward()
    states = last_states(models.policy, rollouts.batch, predicting(rollouts.batch))
    values = spread(value_head(models)(states), rollouts.mask)
    value = value_loss(values, rollouts.values, rollouts.returns, rollouts.mask, token_count=count, clip=0.2)
    (0.3 * value.loss).backward()

    assert figures["value_loss"] == pytest.approx(value.loss.item(), abs=1e-5)
    assert figures["policy_loss"] == pytest.approx(policy.loss.item(), abs=1e-5)
    for one, other in zip(found, gradients(*networks), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_one_pass_serves_policy_and_critic():
    models, passes = tiny_models("shared"), []
    plain_head(models.policy)  # tries out, once, whether the head alone makes the logits
    trainer = PPOTrainer(
        models, tiny_params(critic="shared", num_minibatches=1, epochs=1, runtime={"max_tokens_per_micro_batch": 1000})
    )
    answered = trainer.sample(PROMPTS, seed=1)
    trainer.score(answered, 0.05)  # the first tries the sampler out
    unwrapped(models.policy).base_model.register_forward_hook(lambda *_: passes.append(1))
    rollouts = trainer.score(answered, 0.05)
    assert len(passes) == 1
    list(trainer.steps(rollouts, 1, "no checkpoint"))
    assert len(passes) == 2


def test_first_step_starts_from_the_policy_that_sampled_and_from_a_critic_that_predicts_nothing():
    trainer, rollouts = a_round(tiny_models("shared"), num_minibatches=1, epochs=1)
    assert rollouts.values.abs().max() == 0
    [first] = trainer.steps(rollouts, 1, "no checkpoint")
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert first["squared_change"] == pytest.approx(0, abs=1e-10)
    assert first["clip_fraction"] == first["value_clip_fraction"] == 0
    # values of 0: half the mean square of the returns
    assert first["value_loss"] == pytest.approx(0.5 * rollouts.returns[rollouts.mask].square().mean().item(), rel=1e-5)


def test_values_are_read_from_the_states_before_their_tokens():
    models = models_that_have_learned()
    _, rollouts = a_round(models)
    row, place = 3, int(rollouts.mask[3].nonzero()[1])
    before = rollouts.batch.input_ids[row : row + 1, :place]
    with torch.no_grad():
        expected = value_head(models)(unwrapped(models.policy).base_model(before).last_hidden_state[0, -1:])
    assert rollouts.values[row, place].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_backbone_is_frozen_while_the_value_head_warms_up():
    models = models_that_have_learned()
    policy, head = weights(models.policy), weights(value_head(models))
    trainer, rollouts = a_round(models, critic_warmup=1)
    figures = trainer.update(rollouts, 1, "no checkpoint")
    assert not any(have_moved(policy, models.policy))
    assert all(have_moved(head, value_head(models)))
    assert (figures["ratio_mean"], figures["ratio_var"], figures["grad_norm_policy"]) == (1, 0, 0)
    trainer.update(rollouts, 2, "no checkpoint")
    assert all(have_moved(policy, models.policy))


def test_the_head_learns_as_much_beside_the_policy_as_alone():
    """Else AdamW would take the weight of the value loss for a change of the landscape when the warm-up ends."""

    def norm(warmup: int) -> float:
        trainer, rollouts = a_round(models_that_have_learned(), num_minibatches=1, epochs=1, critic_warmup=warmup)
        [figures] = trainer.steps(rollouts, 1, "no checkpoint")
        return figures["grad_norm_critic"]

    assert norm(1) == pytest.approx(norm(0), rel=1e-5)


def test_the_value_loss_reaches_the_backbone_by_its_weight():
    def moved(weight: float) -> float:
        trainer, rollouts = a_round(models_that_have_learned(), num_minibatches=1, epochs=1, value_weight=weight)
        rollouts = rollouts._replace(advantages=torch.zeros_like(rollouts.advantages))
        [figures] = trainer.steps(rollouts, 1, "no checkpoint")
        return figures["grad_norm_policy"]

    assert moved(0.4) == pytest.approx(4 * moved(0.1), rel=1e-4)


@pytest.mark.slow
def test_a_known_reward_is_found(monkeypatch: pytest.MonkeyPatch):
    scores, kls = trained_on_a_known_reward(monkeypatch, kl_coefficient=0.0, critic="shared")
    assert scores[-1] > scores[0] + 0.4
    assert kls[0] == pytest.approx(0, abs=1e-6)
