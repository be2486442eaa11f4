import math

import pytest

from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.power import prompts_needed


def test_the_usual_case_by_hand():
    # (1.95996 + 0.84162)^2 * 0.5^2 / 0.05^2 = 7.8489 * 100 = 784.9
    assert prompts_needed(0.05, 0.5, 0.95) == 785
    assert prompts_needed(-0.05, 0.5, 0.95) == 785


def test_twice_the_effect_needs_a_quarter():
    assert prompts_needed(0.1, 0.5, 0.95) == math.ceil(784.89 / 4)


@pytest.mark.parametrize(("effect", "deviation"), [(0.0, 0.5), (0.5, 0.0), (math.nan, 0.5), (0.1, math.nan)])
def test_nothing_follows_from_no_effect_or_no_deviation(effect, deviation):
    assert prompts_needed(effect, deviation, 0.95) is None


def test_five_prompts_that_were_all_won_do_not_say_how_many_would_do():
    found = win_rate([1.0] * 5, [0.0] * 5, Resampling(100, 0.95, 1))
    assert (found.conclusion, found.prompts_needed) == ("inconclusive", None)
