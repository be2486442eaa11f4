"""What a reward model is compared with: length and words, on the same pairs."""

import numpy as np
import pytest

from tasks.learning.reward_model.baselines import Texts, baselines, difference, word_margins
from tasks.learning.reward_model.calibration import ScoredPair


def pair(margin: float, longer_by: int = 0, prompt: str | None = None) -> ScoredPair:
    return ScoredPair(margin, 0.0, 10 + longer_by, 10, prompt)


def test_the_longer_answer_wins_and_equal_lengths_are_a_tie():
    scored = [pair(1, 3), pair(1, -2), pair(-1, 0), pair(1, 1)]
    found = baselines(scored, [Texts("a", "b")] * 4, [Texts("a", "b")], seed=1)["longer_wins"]
    assert found["accuracy"]["value"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["difference"]["value"] == pytest.approx(3 / 4 - 2.5 / 4)


def test_words_that_separated_the_training_pairs_order_the_held_out_ones():
    learned = [Texts(f"it is true that {number}", f"it is false that {number}") for number in range(20)]
    margins = word_margins(learned, [Texts("true", "false"), Texts("false", "true"), Texts("new words", "other ones")])
    assert margins[0] > 0
    assert margins[0] == pytest.approx(-margins[1])
    assert margins[2] == 0  # nothing of them was seen


def test_word_pairs_count_too():
    learned = [Texts("dog bites man", "man bites dog")] * 5
    assert word_margins(learned, [Texts("dog bites man", "man bites dog")])[0] > 0


def test_answers_without_a_word_are_ties():
    assert word_margins([Texts("!", "?")], [Texts("yes", "no"), Texts("", "!")]).tolist() == [0, 0]


def test_many_pairs_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.learning.reward_model.baselines.LARGEST_FIT", 10)
    learned = [Texts("good", "bad")] * 15 + [Texts("fine", "poor")] * 15
    assert word_margins(learned, [Texts("good", "bad"), Texts("fine", "poor")]).min() > 0


def test_the_difference_is_paired_and_prompts_are_drawn_whole():
    # Four prompts of ten pairs; ours is right on all of three prompts, theirs on all of one.
    ours = [pair(1.0 if prompt < 3 else -1.0, prompt=str(prompt)) for prompt in range(4) for _ in range(10)]
    theirs = [pair(1.0 if prompt < 1 else -1.0, prompt=str(prompt)) for prompt in range(4) for _ in range(10)]
    clustered = difference(ours, theirs, seed=1)
    alone = difference([each._replace(prompt=None) for each in ours], theirs, seed=1)
    assert clustered["value"] == alone["value"] == pytest.approx(0.5)
    assert (clustered["low"], clustered["high"]) == (0.0, 1.0)  # the mean of four draws from 0, 1, 1, 0
    # Of 40 independent pairs the standard error is sqrt(.25 / 40) = .079.
    assert [alone["low"], alone["high"]] == pytest.approx([0.5 - 1.96 * 0.079, 0.5 + 1.96 * 0.079], abs=0.03)


def test_a_model_compared_with_itself_differs_by_nothing():
    pairs = [pair(float(margin)) for margin in np.random.default_rng(1).normal(size=50)]
    assert difference(pairs, pairs, seed=1) == {"value": 0.0, "low": 0.0, "high": 0.0}
