"""A reward that mainly punishes answers which the limit cuts."""

from math import sqrt

import pytest

from tasks.rewards.cut_answers import CutAnswers, cut_answers, cut_answers_sentence


def test_the_gap_is_in_deviations_of_all_scores_with_the_interval_of_a_difference_of_means():
    # ended: eight times -1, 1; cut: four times -4, -2. Means 0 and -3, each of variance 1.
    scores, ended = [-1.0, 1.0] * 8 + [-4.0, -2.0] * 4, [True] * 16 + [False] * 8
    deviation = sqrt(1 + 9 * (16 / 24) * (8 / 24))  # within, and between: 3
    pooled = (16 * 1 + 8 * 1) / 22
    width = 1.959964 * sqrt(pooled * (1 / 16 + 1 / 8)) / deviation
    found = cut_answers(scores, ended)
    assert found == pytest.approx((8 / 24, 3 / deviation, 3 / deviation - width, 3 / deviation + width))
    assert found and found.is_large  # 1.73 - 0.51


def test_the_unit_of_a_reward_and_where_its_zero_lies_do_not_matter():
    scores, ended = [0.0, 1.0, 3.0] * 10, [True, True, False] * 10
    assert cut_answers([1e3 * each - 7 for each in scores], ended) == pytest.approx(cut_answers(scores, ended))


@pytest.mark.parametrize(
    ("cut", "of", "is_known"), [(4, 40, False), (5, 40, True), (5, 101, False), (6, 101, True), (36, 40, False)]
)
def test_a_few_answers_say_nothing(cut: int, of: int, is_known: bool):
    scores = [float(place % 3) for place in range(of)]
    assert (cut_answers(scores, [place >= cut for place in range(of)]) is not None) == is_known


def test_equal_scores_have_no_gap():
    assert cut_answers([0.1] * 40, [True] * 20 + [False] * 20) is None


def test_a_reward_that_does_not_tell_them_apart_or_prefers_them_is_not_large():
    found = [cut_answers([0.0, 1.0] * 20, ended) for ended in ([True] * 20 + [False] * 20, [True, False] * 20)]
    assert [each and each.is_large for each in found] == [False, False]
    assert found[1] and found[1].gap == -2.0  # 0 and 1, deviation a half


def test_what_it_says():
    assert cut_answers_sentence(CutAnswers(0.2, 1.5, 1.25, 1.75), "ppo.max_new_tokens") == (
        "The training reward mainly punishes answers that ppo.max_new_tokens cuts: of the SFT model's answers 0.20 are "
        "cut, and these score 1.50 [1.25, 1.75] standard deviations below the others. A policy gains by ending early "
        "alone. Raise max_new_tokens, train the reward model's layers where only its head is fitted (reward.epochs), "
        "or set ppo.overlong to mask."
    )
