"""KL estimators, shaped rewards, GAE and whitening: hand-worked numbers, properties, identities by enumeration."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.learning.ppo.advantages import (
    adapted_kl_coefficient,
    centred_in_groups,
    estimate_advantages,
    explained_variance,
    kl_estimates,
    leave_one_out,
    overlong_penalties,
    rewards_to_go,
    shaped_rewards,
    smoothed_rewards,
    standardised_in_groups,
    whiten,
)

NAN = float("nan")
# Two responses: the first takes columns 1 to 3, the second columns 2 and 3.
MASK = torch.tensor([[False, True, True, True, False], [False, False, True, True, False]])


def random_mask(generator, rows=5, columns=9):
    """One contiguous run of at least one token a row, starting and ending anywhere."""
    bounds = [sorted(torch.randperm(columns + 1, generator=generator)[:2].tolist()) for _ in range(rows)]
    return torch.tensor([[start <= t < end for t in range(columns)] for start, end in bounds])


def test_kl_estimators_by_hand():
    log_probs = torch.tensor([[NAN, -1.0, -2.0, -0.5, NAN], [NAN, NAN, -1.0, -3.0, NAN]])
    reference = torch.tensor([[NAN, -1.5, -2.0, -1.5, NAN], [NAN, NAN, -2.0, -1.0, NAN]])
    # d = .5, 0, 1 and 1, -2
    k1 = kl_estimates(log_probs, reference, MASK, "k1")
    assert k1.tolist() == [[0, 0.5, 0, 1, 0], [0, 0, 1, -2, 0]]
    # d^2 / 2 = .125, 0, .5 and .5, 2
    assert kl_estimates(log_probs, reference, MASK, "k2").tolist() == [[0, 0.125, 0, 0.5, 0], [0, 0, 0.5, 2, 0]]
    # exp(-d) - 1 + d: d = .5 gives .6065 - .5 = .1065; d = 1 gives .3679; d = -2 gives 7.3891 - 3 = 4.3891
    k3 = kl_estimates(log_probs, reference, MASK, "k3")
    expected = torch.tensor([[0, 0.10653, 0, 0.36788, 0], [0, 0, 0.36788, 4.38906, 0]])
    torch.testing.assert_close(k3, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_policy_equal_to_reference_has_no_kl_and_rewards_sum_to_the_score(estimator):
    log_probs = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([0.75, -2.0])
    kl = kl_estimates(log_probs, log_probs.clone(), MASK, estimator)
    assert kl.abs().max() == 0
    assert shaped_rewards(scores, kl, MASK, 0.05).sum(1).tolist() == scores.tolist()


def test_shaped_rewards_by_hand():
    kl = torch.tensor([[NAN, 0.5, 0.0, 1.0, NAN], [NAN, NAN, 1.0, -2.0, NAN]])
    rewards = shaped_rewards(torch.tensor([3.0, 4.0]), kl, MASK, 0.5)
    # -.5 * .5 = -.25; 0; -.5 * 1 + 3 = 2.5; second: -.5; -.5 * -2 + 4 = 5
    assert rewards.tolist() == [[0, -0.25, 0, 2.5, 0], [0, 0, -0.5, 5, 0]]


def test_score_lies_on_the_last_token_of_a_row_that_fills_its_columns():
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert shaped_rewards(torch.tensor([2.0]), torch.zeros(1, 3), mask, 1.0).tolist() == [[0, 0, 2]]


def test_smoothing_by_hand():
    rewards = torch.tensor([[NAN, 4.0, 0.0, 8.0, NAN], [NAN, NAN, 1.0, 1.0, NAN]])
    # a = .5: 2; 2 + .5 (0 - 2) = 1; 1 + .5 (8 - 1) = 4.5; second: .5; .5 + .5 (1 - .5) = .75
    assert smoothed_rewards(rewards, MASK, 0.5).tolist() == [[0, 2, 1, 4.5, 0], [0, 0, 0.5, 0.75, 0]]
    unchanged = smoothed_rewards(rewards, MASK, 1.0)
    assert unchanged.tolist() == [[0, 4, 0, 8, 0], [0, 0, 1, 1, 0]]


def test_gae_by_hand():
    rewards = torch.tensor([[NAN, 0.0, 0.0, 1.0, NAN], [NAN, NAN, 2.0, 0.0, NAN]])
    values = torch.tensor([[NAN, 0.5, 0.25, 0.5, NAN], [NAN, NAN, 1.0, 1.0, NAN]])
    advantages, returns = estimate_advantages(rewards, values, MASK, gamma=1.0, gae_lambda=0.5)
    # First row: deltas .25 - .5 = -.25; .5 - .25 = .25; 1 - .5 = .5.
    #   A_3 = .5; A_2 = .25 + .5 * .5 = .5; A_1 = -.25 + .5 * .5 = 0.
    # Second: deltas 2 + 1 - 1 = 2; 0 - 1 = -1. A_3 = -1; A_2 = 2 - .5 = 1.5.
    assert advantages.tolist() == [[0, 0, 0.5, 0.5, 0], [0, 0, 1.5, -1, 0]]
    assert returns.tolist() == [[0, 0.5, 0.75, 1, 0], [0, 0, 2.5, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1))
def test_gae_equals_the_sum_it_stands_for(seed, gamma, gae_lambda):
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(generator)
    rewards, values = (torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    found = estimate_advantages(rewards, values, mask, gamma, gae_lambda)
    for row in range(len(mask)):
        columns = mask[row].nonzero()[:, 0].tolist()
        v = [values[row, t].item() for t in columns] + [0.0]
        deltas = [rewards[row, t].item() + gamma * v[i + 1] - v[i] for i, t in enumerate(columns)]
        for i, t in enumerate(columns):
            expected = sum((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[i:]))
            assert found.advantages[row, t].item() == pytest.approx(expected, abs=1e-12)
            assert found.returns[row, t].item() == pytest.approx(expected + v[i], abs=1e-12)


def test_lambda_and_gamma_of_one_give_the_sum_of_future_rewards():
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    returns = estimate_advantages(rewards, values, MASK, 1.0, 1.0).returns
    future = torch.where(MASK, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(MASK, future, 0.0), atol=1e-6, rtol=0)


def test_whitening_by_hand():
    values = torch.tensor([[NAN, 1.0, 2.0, 3.0, NAN], [NAN, NAN, 4.0, 5.0, NAN]])
    # mean 3, population variance (4 + 1 + 0 + 1 + 4) / 5 = 2, standard deviation 1.41421
    expected = torch.tensor([[0, -1.41421, -0.70711, 0, 0], [0, 0, 0.70711, 1.41421, 0]])
    torch.testing.assert_close(whiten(values, MASK), expected, atol=1e-5, rtol=0)
    with_mean = whiten(values, MASK, keep_mean=True)
    assert with_mean[1, 2].item() == pytest.approx(4 / 1.41421, abs=1e-4)
    assert with_mean[0, 0].item() == 0


def test_whitening_of_a_constant_is_finite():
    assert whiten(torch.full((2, 5), 3.0), MASK).abs().max() == 0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (9.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # 50 % too much is cut to 20 %
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),  # 10 % too much
        (-1.0, 0.1 * (1 - 0.2 * 64 / 1000)),  # a negative estimate is cut too
    ],
)
def test_adaptive_kl_by_hand(kl, expected):
    assert adapted_kl_coefficient(0.1, kl, target=6.0, horizon=1000, responses=64) == pytest.approx(expected, abs=1e-9)


def test_explained_variance():
    returns = torch.tensor([[NAN, 1.0, 2.0, 3.0, NAN], [NAN, NAN, 4.0, 5.0, NAN]])
    assert explained_variance(returns, returns + 7, MASK).item() == pytest.approx(
        1, abs=1e-6
    )  # an offset is no variance
    assert explained_variance(returns, torch.zeros(2, 5), MASK).item() == pytest.approx(0, abs=1e-6)
    # R - V = R / 2 has a quarter of the variance
    assert explained_variance(returns, returns / 2, MASK).item() == pytest.approx(0.75, abs=1e-6)
    assert explained_variance(torch.ones(2, 5), torch.randn(2, 5), MASK).item() == 0


class TestGradientsByEnumeration:
    """One token out of four, so that every expectation is a sum: which use of an estimator gives which gradient."""

    logits = torch.tensor([0.3, -0.8, 1.1, 0.1], dtype=torch.float64)
    reference = torch.tensor([-0.2, 0.4, 0.5, -0.6], dtype=torch.float64).log_softmax(0)
    everything = torch.ones(4, 1, dtype=torch.bool)

    def policy(self):
        logits = self.logits.clone().requires_grad_()
        return logits, logits.log_softmax(0)

    def estimates(self, log_probs, estimator):
        return kl_estimates(log_probs[:, None], self.reference[:, None], self.everything, estimator)[:, 0]

    def gradient_of(self, divergence):
        logits, log_probs = self.policy()
        return torch.autograd.grad(divergence(log_probs), logits)[0]

    def forward_kl(self):
        return self.gradient_of(lambda log_probs: (log_probs.exp() * (log_probs - self.reference)).sum())

    def reverse_kl(self):
        return self.gradient_of(lambda log_probs: (self.reference.exp() * (self.reference - log_probs)).sum())

    def in_reward(self, estimator):
        """The expectation of the score function times the estimate, held constant: a penalty inside the reward."""

        def surrogate(log_probs):
            weights = log_probs.exp().detach() * self.estimates(log_probs, estimator).detach()
            return (weights * log_probs).sum()

        return self.gradient_of(surrogate)

    def in_loss(self, estimator):
        """The expectation, over fixed samples, of the estimate's own gradient: a penalty inside the loss."""
        return self.gradient_of(
            lambda log_probs: (log_probs.exp().detach() * self.estimates(log_probs, estimator)).sum()
        )

    def test_k1_in_the_reward_gives_the_gradient_of_the_kl(self):
        torch.testing.assert_close(self.in_reward("k1"), self.forward_kl(), atol=1e-12, rtol=0)

    def test_k2_in_the_loss_gives_the_gradient_of_the_kl(self):
        torch.testing.assert_close(self.in_loss("k2"), self.forward_kl(), atol=1e-12, rtol=0)

    def test_k1_in_the_loss_gives_none(self):
        torch.testing.assert_close(self.in_loss("k1"), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)

    def test_k3_in_the_loss_gives_the_gradient_of_the_other_kl(self):
        torch.testing.assert_close(self.in_loss("k3"), self.reverse_kl(), atol=1e-12, rtol=0)

    @pytest.mark.parametrize("estimator", ["k2", "k3"])
    def test_k2_and_k3_in_the_reward_are_biased(self, estimator):
        assert (self.in_reward(estimator) - self.forward_kl()).abs().max() > 0.01


# --- Without a critic


def test_each_response_is_measured_by_the_others_to_its_prompt():
    # 1 - (3 + 2) / 2, 3 - (1 + 2) / 2, 2 - (1 + 3) / 2; then 0 - (0 + 6) / 2 twice, and 6 - 0
    found = leave_one_out(torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0, 6.0]), 3)
    assert found.tolist() == [-1.5, 1.5, 0.0, -3.0, -3.0, 6.0]


def test_each_response_is_measured_by_mean_and_deviation_of_its_prompt():
    # mean 2, deviation sqrt(2): 1 / (1.41421 + .0001) = .70706; equal rewards say nothing
    found = standardised_in_groups(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2)
    assert found.tolist() == pytest.approx([-0.70706, 0.70706, 0.0, 0.0], abs=1e-5)


def test_rewards_to_go_sum_up_what_comes():
    rewards = torch.tensor([[float("nan"), 1.0, 2.0, 4.0], [3.0, 5.0, float("nan"), float("nan")]])
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    assert rewards_to_go(rewards, mask, 0.5).tolist() == [[0, 3, 4, 4], [5.5, 5, 0, 0]]


def test_centring_in_groups_by_hand():
    # means 2 and 5
    assert centred_in_groups(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2).tolist() == [-1, 1, 0, 0]


def test_soft_length_penalty_by_hand():
    # the last 4 of 10 tokens: nothing up to 6, then a quarter a token
    lengths = torch.tensor([1, 6, 7, 9, 10])
    assert overlong_penalties(lengths, longest=10, buffer=4).tolist() == [0, 0, -0.25, -0.75, -1]
