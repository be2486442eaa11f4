"""The update phase on a tiny model: identities of the first step, parts that add up, what learning does to KL."""

from typing import Any

import pytest
import torch

from tasks.common.errors import InputError
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.ppo import scoring
from tasks.learning.ppo.trainer import PPOTrainer, averages
from tasks.learning.seeds import seed_for
from tests.tiny import tiny_models, tiny_params

PROMPTS = [[4, 3], [5, 6, 3], [7, 3], [8, 9, 10, 3], [11, 3], [12, 3]]


def a_round(models, iteration=1, **ppo):
    trainer = PPOTrainer(models, tiny_params(**ppo))
    return trainer, trainer.score(trainer.sample(PROMPTS, seed=1), kl_coefficient=0.05)


def weights(model):
    return [weight.detach().clone() for weight in model.parameters()]


def have_moved(before, model):
    return [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]


def test_first_step_starts_from_the_policy_that_sampled():
    trainer, rollouts = a_round(tiny_models(), num_minibatches=1, epochs=2)
    first, second = trainer.steps(rollouts, 1, "no checkpoint")
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert first["squared_change"] == pytest.approx(0, abs=1e-10)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert first["clip_fraction"] == 0
    assert first["policy_loss"] == pytest.approx(0, abs=1e-6)  # minus the mean of whitened advantages
    assert first["value_clip_fraction"] == 0
    assert second["squared_change"] > 1e-8
    assert second["approx_kl"] > 0


def test_loss_of_a_minibatch_is_minus_the_mean_of_its_advantages_as_whitened_over_the_round():
    trainer, rollouts = a_round(tiny_models(), num_minibatches=2, epochs=1)
    first = next(trainer.steps(rollouts, 1, "no checkpoint"))
    # Both minibatches have their own mean, and together, weighted by tokens, they have mean 0: not whitened anew.
    assert abs(first["policy_loss"]) > 1e-3


def test_every_weight_of_policy_and_critic_moves_and_none_of_the_others():
    models = tiny_models()
    old = {name: weights(getattr(models, name)) for name in ("policy", "critic", "reference", "reward")}
    trainer, rollouts = a_round(models)
    trainer.update(rollouts, 1, "no checkpoint")
    assert all(have_moved(old["policy"], models.policy))
    assert all(have_moved(old["critic"], models.critic))
    assert not any(have_moved(old["reference"], models.reference))
    assert not any(have_moved(old["reward"], models.reward))


@pytest.mark.parametrize("tokens", [1, 20, 50])
def test_micro_batches_change_nothing_but_rounding(tokens):
    def trained(tokens):
        models = tiny_models()
        trainer = PPOTrainer(
            models,
            tiny_params(
                runtime={"max_tokens_per_micro_batch": tokens},
                num_minibatches=2,
                entropy_bonus=0.01,
            ),
        )
        rollouts = trainer.score(trainer.sample(PROMPTS, seed=1), 0.05)
        return trainer.update(rollouts, 1, "no checkpoint"), weights(models.policy) + weights(models.critic)

    (figures, moved), (expected_figures, expected) = trained(tokens), trained(1000)
    assert figures == pytest.approx(expected_figures, abs=1e-4)
    for one, other in zip(moved, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_policy_stands_still_while_the_critic_warms_up():
    models = tiny_models()
    policy, critic = weights(models.policy), weights(models.critic)
    trainer, rollouts = a_round(models, critic_warmup=1)
    figures = trainer.update(rollouts, 1, "no checkpoint")
    assert not any(have_moved(policy, models.policy))
    assert any(have_moved(critic, models.critic))
    assert (figures["ratio_mean"], figures["ratio_var"], figures["grad_norm_policy"]) == (1, 0, 0)
    trainer.update(rollouts, 2, "no checkpoint")
    assert any(have_moved(policy, models.policy))


def test_remaining_epochs_are_dropped_where_the_policy_has_moved_too_far():
    def steps(limit):
        trainer, rollouts = a_round(tiny_models(), epochs=4, num_minibatches=2, learning_rate=3e-2, max_update_kl=limit)
        return len(list(trainer.steps(rollouts, 1, "no checkpoint")))

    assert steps(None) == 8
    assert steps(1e-6) == 2


def test_where_every_answer_was_cut_and_is_masked_nothing_moves():
    models = tiny_models()
    before = weights(models.policy) + weights(models.critic)
    trainer, rollouts = a_round(models, overlong="mask", missing_eos_penalty=0.0)
    figures = trainer.update(rollouts._replace(has_ended=torch.zeros(6, dtype=torch.bool)), 1, "no checkpoint")
    after = weights(models.policy) + weights(models.critic)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (figures["ratio_mean"], figures["grad_norm_policy"], figures["grad_norm_critic"]) == (1, 0, 0)


def test_the_entropy_bonus_raises_entropy():
    def entropy_after(bonus):
        trainer, rollouts = a_round(tiny_models(), entropy_bonus=bonus, epochs=4, learning_rate=1e-2)
        rollouts = rollouts._replace(advantages=torch.zeros_like(rollouts.advantages))
        trainer.update(rollouts, 1, "no checkpoint")
        after = trainer.score(trainer.sample(PROMPTS, seed=1), 0.05)
        return after.entropies[after.mask].mean().item()

    assert entropy_after(0.1) > entropy_after(0.0) + 0.01


@pytest.mark.parametrize(("field", "name"), [("advantages", "policy"), ("returns", "critic")])
def test_a_loss_that_is_not_a_number_stops_before_the_optimiser_steps(field, name):
    models = tiny_models()
    trainer, rollouts = a_round(models)
    before = weights(getattr(models, name))
    broken = rollouts._replace(**{field: getattr(rollouts, field) * float("nan")})
    with pytest.raises(InputError, match=rf"step 1: the loss of the {name} is nan; the last good one"):
        trainer.update(broken, 1, "the last good one")
    assert not any(have_moved(before, getattr(models, name)))


def test_the_variance_of_the_ratio():
    # ratios .5 and 1.5: mean 1, mean of (ratio - 1)^2 = .25; all at 1.5: .25 - .5^2 = 0
    assert averages([{"ratio_mean": 1.0, "squared_change": 0.25}]) == {"ratio_mean": 1.0, "ratio_var": 0.25}
    assert averages([{"ratio_mean": 1.5, "squared_change": 0.25}]) == {"ratio_mean": 1.5, "ratio_var": 0.0}


def test_seeds_differ_by_purpose_and_iteration():
    seeds = {seed_for(7, purpose, iteration) for purpose in ("sampling", "minibatches") for iteration in range(50)}
    assert len(seeds) == 100


def trained_on_a_known_reward(monkeypatch, kl_coefficient, rounds=24, **ppo):
    """The score is the share of token 9 in a response, by rule, not by a model; gives score and KL of each round."""

    def share_of_token(_model, batch):
        return ((batch.input_ids == 9) & batch.completion_mask).sum(dim=1) / batch.completion_mask.sum(dim=1)

    monkeypatch.setattr(scoring, "completion_scores", share_of_token)
    params = tiny_params(
        runtime={"max_tokens_per_micro_batch": 2000, "max_concurrent_sequences": 48},
        iterations=rounds,
        rollouts=48,
        max_new_tokens=5,
        learning_rate=4e-3,
        critic_learning_rate=1e-2,
        missing_eos_penalty=0.0,
        schedule="linear",
        **ppo,
    )
    models = tiny_models(params.ppo.critic)
    trainer = PPOTrainer(models if params.ppo.estimator == "gae" else models._replace(critic=None), params)
    scores, kls = [], []
    for iteration in range(1, rounds + 1):
        answered = trainer.sample([prompt for prompt in PROMPTS for _ in range(8)], seed_for(0, "sampling", iteration))
        rollouts = trainer.score(answered, kl_coefficient)
        trainer.update(rollouts, iteration, "no checkpoint", kl_coefficient)
        scores.append(rollouts.scores.mean().item())
        kls.append((rollouts.log_probs - rollouts.reference_log_probs).sum(dim=1).mean().item())
    return scores, kls


@pytest.mark.slow
def test_a_known_reward_is_found_at_the_price_of_kl_and_a_huge_coefficient_forbids_it(monkeypatch):
    scores, kls = trained_on_a_known_reward(monkeypatch, kl_coefficient=0.0)
    assert scores[-1] > scores[0] + 0.4
    assert kls[0] == pytest.approx(0, abs=1e-6)
    assert kls[-1] > 1
    bound_scores, bound_kls = trained_on_a_known_reward(monkeypatch, kl_coefficient=100.0)
    # Adam's steps on white advantages have one size however weak the signal: what is left is their noise.
    assert max(bound_kls[-5:]) < 0.1 * kls[-1]
    assert bound_scores[-1] < scores[-1] - 0.3


OTHER_ESTIMATORS: dict[str, dict[str, Any]] = {
    "rloo": {"estimator": "rloo", "responses_per_prompt": 8},
    "grpo": {"estimator": "grpo", "responses_per_prompt": 8, "kl_estimator": "k2"},
    "reinforce_plus_plus": {"estimator": "reinforce_plus_plus"},
    "reinforce_plus_plus_baseline": {"estimator": "reinforce_plus_plus_baseline", "responses_per_prompt": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", list(OTHER_ESTIMATORS))
def test_every_estimator_finds_a_known_reward_and_is_held_by_the_kl(monkeypatch, estimator):
    settings = OTHER_ESTIMATORS[estimator]
    scores, kls = trained_on_a_known_reward(monkeypatch, kl_coefficient=0.0, **settings)
    assert scores[-1] > scores[0] + 0.4
    held_scores, held_kls = trained_on_a_known_reward(monkeypatch, kl_coefficient=10.0, **settings)
    assert max(held_kls[-5:]) < 0.5 * kls[-1]
    assert held_scores[-1] < scores[-1]


def test_without_a_critic_only_the_policy_learns():
    models = tiny_models()._replace(critic=None)
    trainer = PPOTrainer(models, tiny_params(estimator="rloo", responses_per_prompt=2))
    assert list(trainer.optimisers) == ["policy"]
    rollouts = trainer.score(trainer.sample([prompt for prompt in PROMPTS[:3] for _ in range(2)], seed=1), 0.05)
    figures = trainer.update(rollouts, 1, "no checkpoint")
    assert not [name for name in figures if "value" in name or "critic" in name]


def test_the_gradient_of_grpo_holds_that_of_its_kl():
    """The policy has moved, no answer is better than another: what is left is beta grad k2, (1/N) sum d grad log pi."""
    models = tiny_models()._replace(critic=None)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in models.policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    settings: dict[str, Any] = {
        "estimator": "grpo",
        "responses_per_prompt": 2,
        "kl_estimator": "k2",
        "num_minibatches": 1,
        "epochs": 1,
    }
    trainer = PPOTrainer(models, tiny_params(**settings))
    rollouts = trainer.score(trainer.sample([prompt for prompt in PROMPTS[:3] for _ in range(2)], seed=1), 0.3)
    rollouts = rollouts._replace(advantages=torch.zeros_like(rollouts.advantages))
    log_probs = completion_log_probs(models.policy, rollouts.batch)
    distance = (log_probs - rollouts.reference_log_probs)[rollouts.mask]
    expected = 0.3 * (distance.detach() * distance).sum() / len(distance)
    norm = torch.stack([part.norm() for part in torch.autograd.grad(expected, list(models.policy.parameters()))]).norm()
    [figures] = trainer.steps(rollouts, 1, "no checkpoint", 0.3)
    assert figures["grad_norm_policy"] == pytest.approx(norm.item(), rel=1e-4)


def test_a_sampler_that_does_not_say_what_training_says_is_not_trusted(caplog):
    trainer = PPOTrainer(tiny_models(), tiny_params())
    responses = trainer.sample(PROMPTS, seed=1)
    off = [response._replace(log_probs=response.log_probs - 0.01) for response in responses]
    assert torch.equal(
        trainer.score(off, 0.05).log_probs, PPOTrainer(tiny_models(), tiny_params()).score(off, 0.05).log_probs
    )
    assert caplog.messages == ["the sampler's log-probabilities differ from those of the training pass: recomputed"] * 2
    trained = trainer.score(responses, 0.05)
    torch.testing.assert_close(trained.log_probs, trainer.score(off, 0.05).log_probs, atol=0, rtol=0)
