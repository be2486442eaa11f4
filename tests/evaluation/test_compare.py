import numpy as np
import pytest

from tasks.evaluation import compare
from tasks.evaluation.compare import Interval, Resampling, bootstrap_interval, concluded, sign_test, win_rate

RESAMPLING = Resampling(resamples=1000, confidence=0.95, seed=1)


def test_sign_test_exactly():
    # 9 of 10: 2 * (C(10,0) + C(10,1)) / 2^10 = 22/1024
    assert sign_test(9, 1) == pytest.approx(22 / 1024)
    assert sign_test(1, 9) == sign_test(9, 1)
    assert sign_test(5, 5) == 1
    assert sign_test(0, 0) == 1


def test_bootstrap_of_two_values_has_the_quantiles_of_its_exact_distribution():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chance 1/4, 1/2, 1/4.
    def middle(share):
        return bootstrap_interval([0, 1], Resampling(4000, share, seed=3))

    assert middle(0.95) == (0.5, 0, 1)
    assert middle(0.4) == (0.5, 0.5, 0.5)


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(11)
    data = generator.normal(0.3, 1, size=(400, 60))
    intervals = [bootstrap_interval(row.tolist(), Resampling(500, 0.9, seed)) for seed, row in enumerate(data)]
    covered = np.mean([found.low <= 0.3 <= found.high for found in intervals])
    # 400 tries of 0.9 have a standard deviation of 0.015; the percentile interval is a little narrow at n = 60.
    assert 0.855 < covered < 0.945


def test_bootstrap_interval_is_as_wide_as_the_normal_approximation():
    values = np.random.default_rng(5).normal(size=2000)
    interval = bootstrap_interval(values.tolist(), Resampling(4000, 0.95, seed=2))
    expected = 2 * 1.96 * values.std() / 2000**0.5
    # Of a quantile of 4000 resamples about 3 % is noise.
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)


def test_bootstrap_is_the_same_however_much_is_drawn_at_once(monkeypatch):
    values = np.random.default_rng(8).normal(size=37).tolist()
    whole = bootstrap_interval(values, RESAMPLING)
    monkeypatch.setattr(compare, "DRAWN_AT_ONCE", 100)
    assert bootstrap_interval(values, RESAMPLING) == whole


def test_win_rate_by_hand():
    # win, win, tie, loss: (2 + 1/2) / 4
    found = win_rate([1, 2, 0, 0], [0, 0, 0, 1], RESAMPLING)
    assert (found.value, found.ties, found.wins, found.losses) == (0.625, 0.25, 2, 1)
    # two-sided, 2 of 3: as even as three coins can be
    assert found.sign_test == 1
    assert found.conclusion == "inconclusive"


def test_a_model_against_itself_ties_everywhere():
    scores = np.random.default_rng(0).normal(size=50).tolist()
    found = win_rate(scores, scores, RESAMPLING)
    assert found[:4] == (0.5, 0.5, 0.5, 1)
    assert found.conclusion == "inconclusive"


def test_rounding_of_another_padding_is_a_tie():
    assert win_rate([0.5 + 2e-6], [0.5], RESAMPLING).ties == 1


def test_win_rates_of_two_models_add_up_to_one():
    generator = np.random.default_rng(4)
    ours, theirs = generator.normal(1, 1, 80).tolist(), generator.normal(0, 1, 80).tolist()
    there, back = win_rate(ours, theirs, RESAMPLING), win_rate(theirs, ours, RESAMPLING)
    assert there.value + back.value == pytest.approx(1)
    assert there.low + back.high == pytest.approx(1)
    assert {there.conclusion, back.conclusion} == {"better", "worse"}


@pytest.mark.parametrize(("prompts", "expected"), [(1, "inconclusive"), (5, "inconclusive"), (6, "better")])
def test_few_wins_do_not_convince_the_sign_test(prompts, expected):
    # All of n won: p = 2 / 2^n, below 0.05 from n = 6 on; the bootstrap alone would be sure at n = 1.
    found = win_rate([1.0] * prompts, [0.0] * prompts, RESAMPLING)
    assert (found.low, found.high) == (1, 1)
    assert found.conclusion == expected


def test_noise_alone_is_inconclusive():
    generator = np.random.default_rng(21)
    pairs = generator.normal(size=(100, 2, 60))
    verdicts = [win_rate(ours.tolist(), theirs.tolist(), RESAMPLING).conclusion for ours, theirs in pairs]
    assert verdicts.count("inconclusive") >= 90


def test_verdict():
    assert concluded(Interval(0.2, 0.1, 0.3), 0) == "better"
    assert concluded(Interval(-0.2, -0.3, -0.1), 0) == "worse"
    assert concluded(Interval(0.2, 0.0, 0.3), 0) == "inconclusive"
    assert concluded(Interval(0.2, 0.1, 0.3), 0, is_significant=False) == "inconclusive"


def test_a_score_that_is_not_a_number_wins_nothing():
    found = win_rate([float("nan")] * 8, [0.0] * 8, RESAMPLING)
    assert (found.value, found.losses, found.conclusion) == (0, 8, "worse")


def in_twos(count):
    return RESAMPLING._replace(conversations=tuple(str(place // 2) for place in range(count)))


def test_prompts_that_share_nothing_are_drawn_as_ever():
    values = np.random.default_rng(4).normal(size=20).tolist()
    own = RESAMPLING._replace(conversations=tuple(map(str, range(20))))
    assert bootstrap_interval(values, own) == bootstrap_interval(values, RESAMPLING)
    assert win_rate(values, [0.1] * 20, own) == win_rate(values, [0.1] * 20, RESAMPLING)


def test_two_turns_that_fare_alike_tell_what_one_would():
    values = np.random.default_rng(9).normal(0.3, size=30).tolist()
    twice = [each for value in values for each in (value, value)]
    found = bootstrap_interval(twice, in_twos(60))
    assert list(found) == pytest.approx(list(bootstrap_interval(values, RESAMPLING)))
    one, two = win_rate(values, [0.0] * 30, RESAMPLING), win_rate(twice, [0.0] * 60, in_twos(60))
    assert two[:4] == pytest.approx(one[:4])
    assert (two.sign_test, two.conclusion) == (one.sign_test, one.conclusion)
    assert win_rate(twice, [0.0] * 60, RESAMPLING).sign_test < one.sign_test


def test_a_conversation_is_won_by_more_of_its_turns():
    # Conversations of two turns: both won, one each, both lost, one won and a tie: two wins, one loss.
    found = win_rate([1, 1, 1, -1, -1, -1, 1, 0], [0] * 8, in_twos(8))
    assert (found.wins, found.losses, found.sign_test) == (4, 3, sign_test(2, 1))


def test_prompts_needed_count_turns_as_what_they_tell():
    values = [1.0] * 12 + [-1.0] * 8
    alone, together = (win_rate(values, [0.0] * 20, draws) for draws in (RESAMPLING, in_twos(20)))
    assert alone.prompts_needed is not None
    assert together.prompts_needed == pytest.approx(2 * alone.prompts_needed, abs=1)


def test_some_prompts_keep_their_conversations():
    some = in_twos(6).at([5, 0, 1])
    assert some.conversations == ("2", "0", "0")
    assert RESAMPLING.at([1]) == RESAMPLING
    with pytest.raises(ValueError, match="conversations of 3 prompts for 4 figures"):
        bootstrap_interval([1.0] * 4, some)


def test_intervals_of_conversations_cover_the_true_mean_as_often_as_they_say():
    generator = np.random.default_rng(12)
    data = generator.normal(0.3, 1, size=(300, 40))[:, :, None] + generator.normal(0, 0.5, size=(300, 40, 4))
    names = tuple(str(place // 4) for place in range(160))

    def covered(conversations):
        draws = Resampling(300, 0.9, 0, conversations)
        found = [bootstrap_interval(row.ravel().tolist(), draws) for row in data]
        return np.mean([each.low <= 0.3 <= each.high for each in found])

    assert 0.845 < covered(names) < 0.95  # 300 tries of 0.9 have a standard deviation of 0.017
    assert covered(None) < 0.75
