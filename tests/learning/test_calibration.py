"""Figures of a reward model, by hand."""

import math

import numpy as np
import pytest

from tasks.learning.reward_model.calibration import (
    ScoredPair,
    accuracy_by,
    calibration_error,
    correlation,
    effective_count,
    histogram,
    reward_metrics,
    wilson_interval,
)

# Right by 2, wrong by 1, a tie, right by 1; the chosen answer is longer, longer, as long, shorter.
PAIRS = [
    ScoredPair(2.0, 0.0, 9, 3),
    ScoredPair(0.0, 1.0, 7, 5),
    ScoredPair(1.0, 1.0, 4, 4),
    ScoredPair(1.0, 0.0, 2, 3),
]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_wilson_by_hand():
    # z = 1.959964, z^2 = 3.841459, 8 of 10: centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 / 1.384146 * sqrt(0.016 + 0.009604) = 1.416010 * 0.160012 = 0.226579
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-5)


def test_wilson_stays_inside_at_the_ends():
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    assert wilson_interval(5, 5)[0] < 1.0


def test_accuracy_counts_ties_half():
    # (1 + 0 + 1/2 + 1) / 4 = 0.625
    accuracy = reward_metrics(PAIRS)["accuracy"]
    assert (accuracy["value"], accuracy["pairs"], accuracy["ties"]) == (0.625, 4, 1)
    assert (accuracy["low"], accuracy["high"]) == wilson_interval(2.5, 4)


def test_margins_and_scores():
    figures = reward_metrics(PAIRS)
    # margins 2, -1, 0, 1: mean 0.5, variance (2.25 + 2.25 + 0.25 + 0.25) / 4 = 1.25
    assert (figures["margin"]["mean"], figures["margin"]["std"]) == (0.5, pytest.approx(1.25**0.5))
    # scores 2 0 0 1 1 1 1 0: mean 6/8
    assert figures["score"]["mean"] == 0.75


def test_margins_are_counted_in_bins_of_one_width():
    # from -2 to 2 four bins, -2 -1 0 1: -2 lies on the first edge, -0.5 in the second bin, 0 on the third edge,
    # 1 on the fourth, and 2, on the last, in the last bin
    assert histogram([-2.0, -0.5, 0.0, 1.0, 2.0], bins=4) == {"largest": 2.0, "histogram": [1, 1, 1, 2]}
    counts = reward_metrics(PAIRS)["margin"]["histogram"]  # 2 -1 0 1 in bins of 0.2: numbers 19, 5, 10 and 15 from 0
    assert {place: count for place, count in enumerate(counts) if count} == {5: 1, 10: 1, 15: 1, 19: 1}
    assert len(counts) == 20


def test_a_bin_holds_only_pairs_that_are_wrong_or_only_others():
    assert histogram([-1e-300, 1e-300, 3.0], bins=2)["histogram"] == [1, 2]
    assert histogram([0.0, 0.0], bins=2) == {"largest": 0.0, "histogram": [0, 2]}


def test_calibration_error_by_hand():
    # confidences: sigmoid 2 = 0.8808 (right), sigmoid 1 = 0.7311 (wrong, right), 0.5 (tie: right by half).
    # bin of 0.8808: |1 - 0.8808| = 0.1192; bin of 0.7311: |1 - 2 * 0.7311| = 0.4621; bin of 0.5: 0. Sum / 4 = 0.1453
    assert calibration_error(PAIRS) == pytest.approx(((1 - sigmoid(2)) + (2 * sigmoid(1) - 1)) / 4)


def test_a_sure_and_right_model_is_calibrated():
    assert calibration_error([ScoredPair(1000.0, -1000.0, 1, 1)]) == 0.0
    assert calibration_error([ScoredPair(-1000.0, 1000.0, 1, 1)]) == 1.0


def test_accuracy_by_length_and_confidence():
    figures = reward_metrics(PAIRS)
    assert figures["accuracy_by_length"] == {
        "chosen_longer": {"value": 0.5, "pairs": 2},
        "same_length": {"value": 0.5, "pairs": 1},
        "rejected_longer": {"value": 1.0, "pairs": 1},
    }
    # |differences| 6 2 0 1, sorted 0 1 2 6: bounds at places 1 and 2, so small is 0 and 1, medium is 2, large is 6
    assert figures["accuracy_by_length_difference"] == {
        "small": {"value": 0.75, "pairs": 2},
        "medium": {"value": 0.0, "pairs": 1},
        "large": {"value": 1.0, "pairs": 1},
    }
    by_confidence = {name: found["pairs"] for name, found in figures["accuracy_by_confidence"].items()}
    assert by_confidence == {"0.5-0.6": 1, "0.6-0.7": 0, "0.7-0.8": 2, "0.8-0.9": 1, "0.9-1.0": 0}


def test_accuracy_by_name_is_that_of_each_groups_pairs():
    # right, wrong, tie, right: z^2 = 3.841459.
    # a, 0 of 1: from 0 to z^2 / (1 + z^2) = 3.841459 / 4.841459 = 0.793451
    # b, 1.5 of 2: z^2 / 2 = 1.920729, centre (0.75 + 0.960365) / 2.920729 = 0.585595,
    # half 1.959964 / 2.920729 * sqrt(0.75 * 0.25 / 2 + 1.920729 / 8) = 0.671053 * 0.577790 = 0.387728
    found = accuracy_by({"b": [PAIRS[0], PAIRS[2]], "a": [PAIRS[1]]})
    assert list(found) == ["a", "b"]
    assert found["a"] == {"value": 0.0, "pairs": 1, "low": 0.0, "high": pytest.approx(0.793451, abs=1e-6)}
    assert (found["b"]["value"], found["b"]["pairs"]) == (0.75, 2)
    assert (found["b"]["low"], found["b"]["high"]) == pytest.approx((0.197867, 0.973323), abs=2e-6)


def test_one_name_for_all_gives_the_accuracy_of_all():
    whole = reward_metrics(PAIRS)["accuracy"]
    assert accuracy_by({"x": PAIRS}) == {"x": {name: whole[name] for name in ("value", "pairs", "low", "high")}}


def pairs_of(*prompts: str) -> list[ScoredPair]:
    """A prompt a text, a pair a character: + is right, - wrong, = a tie."""
    scores = {"+": 1.0, "-": -1.0, "=": 0.0}
    return [ScoredPair(scores[each], 0.0, 1, 1, f"q{place}") for place, pairs in enumerate(prompts) for each in pairs]


def test_pairs_that_share_no_prompt_all_count():
    assert effective_count(PAIRS) == effective_count(pairs_of("+", "-", "=", "+")) == 4
    named = [pair._replace(prompt=name) for pair, name in zip(PAIRS, "abcd", strict=True)]
    assert accuracy_by({"x": named}) == accuracy_by({"x": PAIRS})  # to the last digit


def test_effective_count_by_hand():
    # Three prompts of two pairs, and one of two right and one of two wrong added: share (4 + 2) / 10 = 0.6.
    # Squares of pairs 6 of 0.4^2 and 4 of 0.6^2, 2.4; of prompts 3 of 0.8^2 and 2 of 1.2^2, 4.8.
    # Design effect (5/4 * 4.8) / (10/9 * 2.4) = 2.25; t quantiles for 5 and 2 degrees 2.570582 and 4.302653.
    # 6 / 2.25 * (2.570582 / 4.302653)^2 = 2.666667 * 0.356936 = 0.951829
    assert effective_count(pairs_of("++", "++", "--")) == pytest.approx(0.951829, abs=1e-6)


def test_shared_prompts_are_reported_beside_the_count_of_pairs():
    assert accuracy_by({"x": pairs_of("++", "++", "--")})["x"]["effective_pairs"] == 1.0
    assert "effective_pairs" not in accuracy_by({"x": PAIRS})["x"]


def test_pairs_of_one_prompt_never_tell_more_than_they_are():
    # Each prompt half right: their shares do not differ at all, but that is no more than 40 pairs.
    assert effective_count(pairs_of(*["+-"] * 20)) <= 40
    assert effective_count(pairs_of(*["++++"] * 20)) < 25  # nor is all right a sign of independence
    assert effective_count(pairs_of("+++++")) < 1  # one prompt says next to nothing of others


def test_an_annotator_who_chose_the_other_answer_finds_the_model_wrong():
    assert [pair.swapped.correct for pair in PAIRS] == [0.0, 1.0, 0.5, 0.0]
    assert PAIRS[0].swapped == ScoredPair(0.0, 2.0, 3, 9)
    assert pairs_of("+")[0].swapped.prompt == "q0"


@pytest.mark.parametrize(("accuracy", "likeness", "prompts"), [(0.7, 0.3, 30), (0.9, 0.7, 15), (0.6, 0.0, 20)])
def test_the_interval_holds_the_truth_as_often_as_it_says(accuracy, likeness, prompts):
    """Prompts of 3 to 7 pairs, whose own accuracies vary: beta-distributed, `likeness` correlates pairs of a prompt."""
    chance, rounds = np.random.default_rng(0), 500
    held = held_alone = 0
    spread = (1 - likeness) / likeness if likeness else math.inf
    for _ in range(rounds):
        own = chance.beta(accuracy * spread, (1 - accuracy) * spread, prompts) if likeness else [accuracy] * prompts
        sizes = chance.integers(3, 8, prompts)
        found = pairs_of(
            *("".join("-+"[int(n < p)] for n in chance.random(size)) for size, p in zip(sizes, own, strict=True))
        )
        figures = accuracy_by({"x": found})["x"]
        held += figures["low"] <= accuracy <= figures["high"]
        low, high = wilson_interval(sum(pair.correct for pair in found), len(found))
        held_alone += low <= accuracy <= high
    error = math.sqrt(0.95 * 0.05 / rounds)
    assert held / rounds > 0.95 - 3 * error
    assert (held_alone / rounds < 0.87) == (likeness > 0)


def test_differences_that_are_all_alike_are_all_small():
    figures = reward_metrics([ScoredPair(1.0, 0.0, 3, 3)] * 3)["accuracy_by_length_difference"]
    assert [group["pairs"] for group in figures.values()] == [3, 0, 0]


def test_correlation_by_hand():
    # deviations -1 0 1 and -1 2 -1: products 1 + 0 - 1 = 0; with 1 2 6 (deviations -2 -1 3): products 2 + 0 + 3 = 5,
    # squares 2 and 14: 5 / sqrt 28 = 0.944911
    assert correlation([1, 2, 3], [1, 4, 1]) == pytest.approx(0.0)
    assert correlation([1, 2, 3], [1, 2, 6]) == pytest.approx(0.944911, abs=1e-6)


def test_longer_answers_with_higher_scores_correlate():
    assert reward_metrics([ScoredPair(2.0, 1.0, 20, 10)])["length_correlation"] == pytest.approx(1.0)


def test_no_correlation_where_nothing_varies():
    assert correlation([1.0, 2.0], [3.0, 3.0]) is None
    assert correlation([1.0], [3.0]) is None
