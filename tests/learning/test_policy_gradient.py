"""The clipped losses: hand-worked numbers, padding that cannot matter, parts that add up to the whole."""

import math

import pytest
import torch

from tasks.learning.ppo.policy_gradient import Counts, aggregated, policy_loss, value_loss
from tests.learning.ppo_variants import LOSSES

ONE = torch.ones(1, 1, dtype=torch.bool)
MASK = torch.tensor([[False, True, True, True, False], [False, False, True, True, False]])


def row(*values):
    return torch.tensor([values])


def loss_of_one_token(ratio, advantage, dual_clip=None):
    log_probs = row(math.log(ratio))
    return policy_loss(log_probs, row(0.0), row(advantage), ONE, counts=Counts(1, 1, 1), clip=0.2, dual_clip=dual_clip)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip", "loss", "is_sharded"),
    [
        (1.1, 2.0, None, -2.2, False),  # inside the clip: -2 * 1.1
        (1.5, 2.0, None, -2.4, True),  # good token, already likelier: -2 * 1.2
        (0.5, 2.0, None, -1.0, False),  # good token, less likely: nothing is cut, -2 * .5
        (0.5, -2.0, None, 1.6, True),  # bad token, already less likely: 2 * .8
        (1.5, -2.0, None, 3.0, False),  # bad token, likelier: 2 * 1.5
        (5.0, -2.0, None, 10.0, False),  # without the dual clip: 2 * 5
        (5.0, -2.0, 3.0, 6.0, True),  # with it: at most 2 * 3
        (5.0, 2.0, 3.0, -2.4, True),  # the dual clip leaves good tokens alone
    ],
)
def test_policy_loss_by_hand(ratio, advantage, dual_clip, loss, is_sharded):
    found = loss_of_one_token(ratio, advantage, dual_clip)
    assert found.loss.item() == pytest.approx(loss, abs=1e-5)
    assert found.clip_fraction.item() == float(is_sharded)
    assert found.ratio_mean.item() == pytest.approx(ratio, abs=1e-5)
    assert found.squared_change.item() == pytest.approx((ratio - 1) ** 2, abs=1e-4)
    # k3 between old and new: ratio - 1 - log ratio
    assert found.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-5)


@pytest.mark.parametrize(("ratio", "advantage", "dual_clip"), [(1.5, 2.0, None), (0.5, -2.0, None), (5.0, -2.0, 3.0)])
def test_cut_tokens_have_no_gradient(ratio, advantage, dual_clip):
    log_probs = row(math.log(ratio)).requires_grad_()
    policy_loss(
        log_probs, row(0.0), row(advantage), ONE, counts=Counts(1, 1, 1), clip=0.2, dual_clip=dual_clip
    ).loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.item() == 0


def test_the_upper_clip_may_be_another():
    def loss(ratio, advantage):
        log_probs = row(math.log(ratio))
        counts = Counts(1, 1, 1)
        return policy_loss(log_probs, row(0.0), row(advantage), ONE, counts=counts, clip=0.2, clip_high=0.4).loss.item()

    assert loss(1.5, 2.0) == pytest.approx(-2.8, abs=1e-5)  # -2 * 1.4
    assert loss(1.3, 2.0) == pytest.approx(-2.6, abs=1e-5)  # within: -2 * 1.3
    assert loss(0.5, -2.0) == pytest.approx(1.6, abs=1e-5)  # below as before: 2 * .8


def test_aggregations_by_hand():
    values = torch.tensor([[math.nan, 1.0, 2.0, 6.0, math.nan], [math.nan, math.nan, 4.0, 8.0, math.nan]])
    counts = Counts(tokens=5, answers=2, max_new_tokens=4)
    assert aggregated(values, MASK, "token", counts).item() == pytest.approx(4.2)  # 21 / 5
    assert aggregated(values, MASK, "sequence", counts).item() == pytest.approx(4.5)  # (9/3 + 12/2) / 2
    assert aggregated(values, MASK, "constant", counts).item() == pytest.approx(2.625)  # 21 / (2 * 4)


def loss_and_gradient(log_probs, advantage, **options):
    """Of one answer whose tokens had probability 1."""
    leaf = torch.tensor([log_probs]).requires_grad_()
    mask = torch.ones_like(leaf, dtype=torch.bool)
    counts = Counts(mask.numel(), 1, mask.numel())
    found = policy_loss(leaf, torch.zeros_like(leaf), advantage * mask, mask, counts=counts, **options)
    found.loss.backward()
    assert leaf.grad is not None
    return found, leaf.grad[0].tolist()


def test_gspo_by_hand():
    ratios = [math.log(4.0), 0.0]  # 4 and 1: sqrt(4) = 2
    found, gradient = loss_and_gradient(ratios, -1.0, clip=0.5, kind="gspo", aggregation="sequence")
    assert found.loss.item() == pytest.approx(2.0, abs=1e-5)  # 1 * 2: a bad answer, likelier, is not clipped
    assert gradient == pytest.approx([1.0, 1.0], abs=1e-5)  # d s / d logp = s / T = 2 / 2, of both tokens
    assert found.ratio_mean.item() == pytest.approx(2.0, abs=1e-5)
    assert found.approx_kl.item() == pytest.approx((4 - 1 - math.log(4.0)) / 2, abs=1e-5)  # of tokens
    found, gradient = loss_and_gradient(ratios, 1.0, clip=0.5, kind="gspo", aggregation="sequence")
    assert found.loss.item() == pytest.approx(-1.5, abs=1e-5)  # clipped: -1 * 1.5
    assert gradient == [0.0, 0.0]
    assert found.clip_fraction.item() == 1.0


def test_cispo_by_hand():
    found, gradient = loss_and_gradient(
        [math.log(4.0), math.log(0.25), 0.0], 2.0, clip=0.5, clip_high=1.0, kind="cispo"
    )
    # weights 2 (of 4), .5 (of .25) and 1; -2 * (2 log 4 + .5 log .25 + 0) / 3 = -2 * 1.5 * 1.3863 / 3
    assert found.loss.item() == pytest.approx(-1.386294, abs=1e-5)
    assert gradient == pytest.approx([-4 / 3, -1 / 3, -2 / 3], abs=1e-5)  # -weight * 2 / 3: no token loses its own
    assert found.clip_fraction.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kind", "aggregation"), LOSSES)
def test_at_the_policy_that_sampled_all_losses_have_the_same_gradient_and_no_kl(kind, aggregation):
    leaf = torch.tensor([[-0.5, -1.5]]).requires_grad_()
    counts = Counts(2, 1, 2)
    old, mask = leaf.detach().clone(), torch.ones(1, 2, dtype=torch.bool)
    found = policy_loss(leaf, old, 3.0 * mask, mask, counts=counts, clip=0.2, kind=kind, aggregation=aggregation)
    found.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[-1.5, -1.5]]  # -A / 2
    assert [found.approx_kl.item(), found.clip_fraction.item(), found.ratio_mean.item()] == [0, 0, 1]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "is_clipped"),
    [
        (0.1, 0.0, 1.0, 0.405, 0.0),  # within the clip: .5 * .9^2
        (0.9, 0.0, 1.0, 0.32, 1.0),  # near the target, but too far from the old value: .5 * .8^2
        (-0.9, 0.0, 1.0, 1.805, 0.0),  # far the wrong way: .5 * 1.9^2 is the larger one
    ],
)
def test_value_loss_by_hand(value, old, target, loss, is_clipped):
    found = value_loss(row(value), row(old), row(target), ONE, token_count=1, clip=0.2)
    assert found.loss.item() == pytest.approx(loss, abs=1e-6)
    assert found.clip_fraction.item() == is_clipped


def test_an_extreme_ratio_stays_finite():
    found = policy_loss(row(0.0), row(-1e4), row(-1.0), ONE, counts=Counts(1, 1, 1), clip=0.2)
    assert torch.isfinite(found.loss)


def random_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["clip", "gspo", "cispo"])
def test_padding_changes_neither_losses_nor_gradients(kind, rubbish):
    def losses_and_gradients(fill):
        new, old, third, fourth = (torch.where(MASK, tensor, fill) for tensor in random_inputs())
        new.requires_grad_()
        policy = policy_loss(new, old, third, MASK, counts=Counts(5, 2, 4), clip=0.2, dual_clip=3.0, kind=kind)
        value = value_loss(new, old, fourth, MASK, token_count=5, clip=0.2)
        gradient = torch.autograd.grad(policy.loss + value.loss, new)[0]
        return [*policy, *value, gradient]

    for clean, dirty in zip(losses_and_gradients(0.0), losses_and_gradients(rubbish), strict=True):
        assert torch.equal(clean, dirty)
    assert losses_and_gradients(rubbish)[-1][~MASK].abs().max() == 0


@pytest.mark.parametrize(("kind", "aggregation"), LOSSES)
def test_parts_of_a_minibatch_add_up_to_the_whole(kind, aggregation):
    new, old, advantages, returns = random_inputs(1)
    new.requires_grad_()
    count = int(MASK.sum())
    counts = Counts(count, answers=2, max_new_tokens=4)

    def parts(rows):
        policy = policy_loss(
            new[rows],
            old[rows],
            advantages[rows],
            MASK[rows],
            counts=counts,
            clip=0.2,
            kind=kind,
            aggregation=aggregation,
        )
        value = value_loss(new[rows], old[rows], returns[rows], MASK[rows], token_count=count, clip=0.2)
        gradient = torch.autograd.grad(policy.loss + value.loss, new)[0]
        return [*policy, *value, gradient]

    whole, first, second = parts(slice(0, 2)), parts(slice(0, 1)), parts(slice(1, 2))
    for of_all, a, b in zip(whole, first, second, strict=True):
        torch.testing.assert_close(of_all, a + b, atol=1e-6, rtol=0)
