"""Rollout correction: the bounded ratios of importance sampling, and how far sampler and trainer are apart."""

import math

import pytest
import torch

from tasks.common.errors import InputError
from tasks.learning.ppo.rollout_correction import check_mismatch, correction_weights, mismatch
from tasks.learning.ppo.trainer import PPOTrainer
from tests.tiny import tiny_models, tiny_params

LOG_RATIOS = torch.tensor([[math.log(1.5), math.log(4.0), math.nan], [math.log(0.4), math.log(0.9), math.log(1.2)]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
        ("token", [[1.5, 2.0, 0.0], [0.4, 0.9, 1.2]]),
        ("sequence", [[2.0, 2.0, 0.0], [0.432, 0.432, 0.432]]),
        ("mask", [[1.5, 0.0, 0.0], [0.0, 0.9, 1.2]]),
    ],
)
def test_weights(kind, expected):
    torch.testing.assert_close(correction_weights(LOG_RATIOS, MASK, kind, 2.0), torch.tensor(expected))


def test_a_ratio_without_bound_is_bounded():
    log_ratios = torch.tensor([[1000.0, -1000.0]])
    for kind in ("token", "sequence", "mask"):
        assert correction_weights(log_ratios, torch.ones(1, 2, dtype=torch.bool), kind, 2.0).isfinite().all()


def test_weighted_samples_of_one_policy_have_the_mean_of_another():
    """Importance sampling, from scratch: the mean over samples of mu, weighted by pi / mu, is the mean under pi."""
    generator = torch.Generator().manual_seed(1)
    pi, mu = (torch.randn(6, generator=generator).softmax(dim=0) for _ in range(2))
    values = torch.arange(6.0)
    drawn = torch.multinomial(mu, 200_000, replacement=True, generator=generator)[None]
    weights = correction_weights((pi / mu).log()[drawn], torch.ones_like(drawn, dtype=torch.bool), "token", 100.0)
    assert (weights * values[drawn]).mean().item() == pytest.approx((pi * values).sum().item(), abs=0.02)
    assert values[drawn].mean().item() != pytest.approx((pi * values).sum().item(), abs=0.02)


def test_the_mismatch_is_an_estimate_of_the_kl():
    generator = torch.Generator().manual_seed(1)
    pi, mu = (torch.randn(6, generator=generator).softmax(dim=0) for _ in range(2))
    drawn = torch.multinomial(mu, 200_000, replacement=True, generator=generator)[None]
    found = mismatch((pi / mu).log()[drawn], torch.ones_like(drawn, dtype=torch.bool))
    assert found["rollout_kl"].item() == pytest.approx((mu * (mu / pi).log()).sum().item(), rel=0.03)
    assert found["rollout_ratio_mean"].item() == pytest.approx(1.0, abs=0.01)


def test_the_share_of_ratios_far_from_1():
    assert mismatch(LOG_RATIOS, MASK)["rollout_ratio_outside"].item() == pytest.approx(2 / 5)
    assert mismatch(torch.zeros(2, 3), MASK)["rollout_kl"].item() == 0


def test_a_limit_stops_with_figures():
    check_mismatch(0.1, 0.1, 3, "no checkpoint")
    check_mismatch(9.0, None, 3, "no checkpoint")
    for kl in (0.2, math.nan):
        with pytest.raises(InputError, match=rf"iteration 3.*{kl:.3g} nats.*max_rollout_kl of 0.1.*checkpoint 2"):
            check_mismatch(kl, 0.1, 3, "checkpoint 2 is saved")


@pytest.mark.parametrize("kind", ["none", "token", "sequence", "mask"])
def test_a_sampler_that_is_off_is_corrected_in_the_advantages_alone(kind):
    models = tiny_models()
    trainer = PPOTrainer(models, tiny_params(rollout_correction=kind))
    responses = trainer.sample([[4, 5, 3], [7, 3], [9, 8, 3]], seed=3)
    exact = trainer.score(responses, 0.1)
    assert exact.sampled_log_probs is None

    trainer = PPOTrainer(models, tiny_params(rollout_correction=kind))
    off = [each._replace(log_probs=each.log_probs - 0.3, entropies=None) for each in responses]
    found = trainer.score(off, 0.1)
    assert found.sampled_log_probs is not None
    lengths = found.mask.sum(dim=1, keepdim=True)
    ratio = {"none": 1.0, "token": math.exp(0.3), "mask": math.exp(0.3)}.get(kind)
    weights = (0.3 * lengths).exp().clamp(max=2.0) if ratio is None else ratio
    torch.testing.assert_close(found.advantages, exact.advantages * weights, atol=1e-4, rtol=1e-4)
    for name in ("log_probs", "returns", "values", "learned_scores"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), atol=1e-5, rtol=1e-4)
