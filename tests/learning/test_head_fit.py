"""The fitted head is the minimum of a convex loss, whatever the micro-batches, and agrees with scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import EncodedPair
from tasks.learning.batches import collate_pairs
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import pack_if_exact
from tasks.learning.models.outputs import completion_scores
from tasks.learning.reward_model.head_fit import PENALTIES, answer_features, fit_head
from tasks.learning.reward_model.loss import PairTerms, loss_of
from tasks.settings.params import Reward
from tests.conftest import MakeParams
from tests.families import FAMILIES, ROWS, scoring

COUNT, WIDTH = 60, 5
GROUPS = [f"conversation {place // 3}" for place in range(COUNT)]
EQUAL = PairTerms(torch.ones(COUNT), torch.zeros(COUNT))


def features(seed: int = 0, signal: float = 1.0) -> PairValues:
    """Features of unequal scale; the first and second tell which answer was chosen, by the signal."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (torch.randn(COUNT, WIDTH, generator=generator) for _ in range(2))
    chosen[:, :2] += signal
    scales = torch.tensor([1.0, 100.0, 0.01, 3.0, 1.0])
    return PairValues(chosen * scales, rejected * scales)


@pytest.fixture
def settings(make_params: MakeParams) -> Any:
    def make(**changes: Any) -> Reward:
        return make_params(reward={"head_init": "fit", "head_l2": 0.1, "centering": 0.0, **changes}).reward

    return make


def test_it_is_the_logistic_regression_of_scikit_learn(settings: Any):
    given = features()
    fit = fit_head(given, EQUAL, GROUPS, settings(), seed=1)
    both = torch.cat([given.chosen, given.rejected]).double().numpy()
    differences = (given.chosen - given.rejected).double().numpy() / both.std(axis=0)
    # Without an intercept a difference and its negative say the same. C is the weight of the summed loss beside
    # |w|^2 / 2: each pair stands twice here, so 2 N C l2 / 2 N = 1.
    regression = LogisticRegression(C=1 / (0.1 * 2 * COUNT), fit_intercept=False, tol=1e-10, max_iter=10_000)
    regression.fit(np.concatenate([differences, -differences]), [1] * COUNT + [0] * COUNT)
    assert (fit.weights.numpy() * both.std(axis=0)) == pytest.approx(regression.coef_[0], rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"margin": 0.5, "label_smoothing": 0.1, "centering": 0.3}])
def test_no_step_from_it_lowers_the_loss(settings: Any, changes: dict[str, float]):
    given, found = features(), settings(**changes)
    fit = fit_head(given, EQUAL, GROUPS, found, seed=1)
    deviations = torch.cat(list(given)).double().std(dim=0, correction=0)

    def objective(weights: torch.Tensor) -> float:
        scores = PairValues(*(each.double() @ weights for each in given))
        return (loss_of(scores, COUNT, found) + 0.05 * (weights * deviations).square().sum()).item()

    least = objective(fit.weights)
    for place in range(WIDTH):
        for step in (-1e-3, 1e-3):
            other = fit.weights.clone()
            other[place] += step / deviations[place]
            assert objective(other) > least


def test_pairs_of_a_ranked_list_count_as_one_in_the_fit(settings: Any):
    given = features()
    alone = fit_head(given, EQUAL, GROUPS, settings(), seed=1)
    thrice = PairValues(*(each.repeat_interleave(3, dim=0) for each in given))
    thirds = PairTerms(torch.full((3 * COUNT,), 1 / 3), torch.zeros(3 * COUNT))
    of_thirds = fit_head(thrice, thirds, [each for each in GROUPS for _ in range(3)], settings(), seed=1)
    assert of_thirds.weights.tolist() == pytest.approx(alone.weights.tolist(), abs=1e-5)  # both are solved to 1e-7
    first_alone = PairTerms(
        torch.cat([torch.full((COUNT // 2,), 9.0), torch.ones(COUNT - COUNT // 2)]), EQUAL.strengths
    )
    assert fit_head(given, first_alone, GROUPS, settings(), seed=1).weights.tolist() != pytest.approx(
        alone.weights.tolist(), abs=1e-3
    )


def test_cross_validation_takes_a_weak_penalty_where_there_is_a_signal_and_a_strong_one_for_noise(settings: Any):
    chosen = {
        signal: fit_head(features(signal=signal), EQUAL, GROUPS, settings(head_l2=None), seed=1).figures["l2"]
        for signal in (0.0, 3.0)
    }
    assert chosen[0.0] == max(PENALTIES)
    assert chosen[3.0] < 0.1


def test_pairs_of_a_conversation_lie_in_one_fold(settings: Any):
    # Each conversation has a feature of its own that says which answer is right there, and nothing does elsewhere.
    own = torch.eye(COUNT // 3).repeat_interleave(3, dim=0)
    given = PairValues(own, torch.zeros_like(own))
    by_pair = fit_head(given, EQUAL, [str(place) for place in range(COUNT)], settings(head_l2=None), seed=1)
    by_conversation = fit_head(given, EQUAL, GROUPS, settings(head_l2=None), seed=1)
    assert min(by_pair.figures["cross_validated_loss"].values()) < 0.5
    assert min(by_conversation.figures["cross_validated_loss"].values()) == pytest.approx(np.log(2), abs=1e-6)


def test_one_conversation_gives_no_folds(settings: Any):
    with pytest.raises(InputError, match="all training pairs share one prompt"):
        fit_head(features(), EQUAL, ["one"] * COUNT, settings(head_l2=None), seed=1)


def test_a_feature_that_never_varies_gets_no_weight(settings: Any):
    given = PairValues(*(torch.cat([each, torch.ones(COUNT, 1)], dim=1) for each in features()))
    assert fit_head(given, EQUAL, GROUPS, settings(), seed=1).weights[-1].abs() < 1e-9


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_times_the_head_are_the_scores_whatever_the_micro_batches(pooling: str):
    model = scoring(FAMILIES["llama"])
    model.config.score_pooling = pooling
    pack_if_exact(model)
    pairs = [EncodedPair(ROWS[0], ROWS[3]), EncodedPair(ROWS[1], ROWS[2]), EncodedPair(ROWS[2], ROWS[0])]
    expected = completion_scores(model, collate_pairs(pairs)).detach()
    for tokens in (1, 30, 1000):
        found = answer_features(model, pairs, tokens, "features")
        scores = torch.cat(list(found)) @ model.score.weight[0].detach()
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
