import numpy as np
import pytest
from scipy.optimize import minimize

from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.lengths import PRIORS, length_controlled_win_rate

RESAMPLING = Resampling(resamples=400, confidence=0.95, seed=1)
PROMPTS = 600


def compared(chance, longer, seed=3):
    """Win rate as it is and with length taken out, where the first model wins with a chance and is longer by tokens."""
    ours = (np.random.default_rng(seed).random(len(longer)) < chance).astype(float).tolist()
    theirs = [0.5] * len(longer)
    lengths = (100 + longer).tolist(), [100.0] * len(longer)
    return win_rate(ours, theirs, RESAMPLING), length_controlled_win_rate(ours, theirs, *lengths, RESAMPLING)


def test_it_is_the_penalised_logistic_regression():
    generator = np.random.default_rng(5)
    longer, won = generator.normal(4, 9, 50), generator.choice([0.0, 0.5, 1.0], 50)
    features = np.tanh(longer / np.sqrt((longer**2).mean()))

    def loss(weights):
        logits = weights[0] + weights[1] * features
        likelihood = won * np.logaddexp(0, -logits) + (1 - won) * np.logaddexp(0, logits)
        return likelihood.sum() + ((weights / PRIORS) ** 2).sum() / 2

    expected = 1 / (1 + np.exp(-minimize(loss, [0, 0], tol=1e-10).x[0]))
    found = length_controlled_win_rate(won.tolist(), [0.5] * 50, longer.tolist(), [0.0] * 50, RESAMPLING)
    assert found.value == pytest.approx(expected, abs=1e-5)


def test_turns_of_a_conversation_are_drawn_together():
    generator = np.random.default_rng(6)
    longer, won = (values.repeat(4).tolist() for values in (generator.normal(4, 9, 50), generator.random(50).round()))
    together = RESAMPLING._replace(conversations=tuple(str(place // 4) for place in range(200)))
    alone, found = (
        length_controlled_win_rate(won, [0.5] * 200, longer, [0.0] * 200, draws) for draws in (RESAMPLING, together)
    )
    assert found.value == alone.value
    # four turns that are one tell a quarter: intervals twice as wide
    assert found.high - found.low == pytest.approx(2 * (alone.high - alone.low), rel=0.15)


def test_where_length_does_not_matter_it_is_the_win_rate():
    plain, controlled = compared(0.65, np.random.default_rng(1).normal(0, 20, PROMPTS))
    assert controlled.value == pytest.approx(plain.value, abs=0.01)
    assert controlled.low == pytest.approx(plain.low, abs=0.02)


def test_answers_of_one_length_leave_the_win_rate_as_it_is():
    plain, controlled = compared(0.65, np.zeros(PROMPTS))
    assert controlled.value == pytest.approx(plain.value, abs=1e-3)


def test_wins_that_length_explains_are_no_gain():
    longer = np.random.default_rng(2).normal(30, 30, PROMPTS)
    plain, controlled = compared(1 / (1 + np.exp(-longer / 15)), longer)
    assert plain.conclusion == "better"
    assert controlled.low < 0.5 < controlled.high


def test_all_won_is_finite():
    _, controlled = compared(1.0, np.random.default_rng(2).normal(30, 30, PROMPTS))
    assert 0.9 < controlled.low <= controlled.high < 1


def test_so_many_prompts_show_it():
    # test_power.py has the 785 for a win rate of .55 without ties
    generator = np.random.default_rng(7)
    samples = generator.random((100, 785)) < 0.55
    shown = [win_rate(row.astype(float).tolist(), [0.5] * 785, RESAMPLING).conclusion == "better" for row in samples]
    assert 70 <= sum(shown) <= 92


def test_no_prompts_show_a_half_to_differ():
    assert win_rate([1, 0], [0, 1], RESAMPLING).prompts_needed is None
