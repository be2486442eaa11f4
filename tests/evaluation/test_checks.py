import copy

import pytest

from tasks.common.errors import InputError
from tasks.evaluation.gate.check import Check
from tasks.evaluation.gate.checks import decide, reasons, warnings
from tasks.evaluation.opponent import Opponent
from tests.evaluation.evaluations import (
    GOOD,
    THRESHOLDS,
    allowing,
    by_reward,
    changed,
    checks,
    decision,
    difference,
    evidence,
    interval,
    rate,
)

NAMES = [
    "win_rate",
    "win_rate_at_equal_length",
    "held_out_reward",
    "over_optimisation",
    "category_regressions",
    "kl",
    "reward_accuracy",
    "held_out_accuracy",
    "length_ratio",
    "eos_rate",
    "repetition",
    "refusals",
    "perplexity",
]
# Where the figures of a check are null if they could not be computed.
PLACES: dict[str, list[tuple[str, ...]]] = {
    "win_rate": [("win_rate", "vs_opponent", key) for key in ("value", "low", "high")],
    "win_rate_at_equal_length": [
        ("length_controlled_win_rate", "vs_opponent", key) for key in ("value", "low", "high")
    ],
    "held_out_reward": [("held_out", "vs_opponent", key) for key in ("value", "low", "high")],
    "kl": [("kl", "mean")],
    "length_ratio": [("candidate", "length"), ("opponent", "length")],
    "eos_rate": [("candidate", "eos_rate")],
    "repetition": [("candidate", "repetition")],
    "refusals": [("candidate", "refusals"), ("opponent", "refusals")],
    "perplexity": [("perplexity", "candidate"), ("perplexity", "sft")],
}
CASES = [(name, path) for name, paths in PLACES.items() for path in paths]


def test_all_good_is_promoted_with_every_line_as_a_reason():
    found = checks()
    assert list(found) == NAMES
    assert {check.verdict for check in found.values()} == {"passed"}
    assert decide(list(found.values())) == "promote"
    assert reasons(list(found.values())) == [check.sentence for check in found.values()]


def test_every_line_has_the_figure_the_threshold_and_the_verdict():
    assert {name: check.sentence for name, check in checks().items()} == {
        "win_rate": "Win rate over SFT, lower bound 0.600 >= 0.5: passed. The win rate is 0.700 [0.600, 0.800].",
        "win_rate_at_equal_length": "Win rate over SFT at equal length, lower bound 0.550 >= 0.5: passed. "
        "The win rate at equal length is 0.650 [0.550, 0.750].",
        "held_out_reward": "Win rate over SFT by the held-out reward model, upper bound 0.650 >= 0.5: passed. "
        "The win rate is 0.550 [0.450, 0.650].",
        "over_optimisation": "Over-optimised evaluation points 0 <= 0: passed. No over-optimisation: at none of 2 "
        "evaluation points is the final policy significantly better by the training reward and significantly worse by "
        "the held-out reward model. Over the policy at step 0, the final policy wins 0.500 [0.400, 0.600] by the "
        "training reward and 0.500 [0.400, 0.600] by the held-out reward model.",
        "category_regressions": "Categories worse than SFT 0 <= 0: passed. 1 of 2 have too few prompts for a "
        "conclusion: tax.",
        "kl": "KL(policy || SFT), nats per answer 4.000 <= 10: passed.",
        "reward_accuracy": "Accuracy of the reward model on held-out pairs, lower bound 0.700 >= 0.6: passed.",
        "held_out_accuracy": "Accuracy of the held-out reward model on held-out pairs, lower bound 0.600 >= 0.5: "
        "passed.",
        "length_ratio": "Length of the answers, relative to those of SFT 1.20 <= 1.5: passed. It is at least 0.5.",
        "eos_rate": "Ended by EOS 0.950 >= 0.9: passed.",
        "repetition": "Repeated 4-grams 0.010 <= 0.2: passed.",
        "refusals": "Share of refusals minus that of SFT 0.010 <= 0.05: passed. The shares are 0.020 and 0.010.",
        "perplexity": "Perplexity of the demonstrated answers, relative to SFT 1.50 <= 2: passed.",
    }


@pytest.mark.parametrize(
    ("name", "path", "at", "beyond"),
    [
        ("kl", ("kl", "mean"), 10.0, 10.01),
        ("held_out_reward", ("held_out", "vs_opponent", "high"), 0.5, 0.49),
        ("length_ratio", ("candidate", "length"), 15.0, 15.1),
        ("eos_rate", ("candidate", "eos_rate"), 0.9, 0.89),
        ("repetition", ("candidate", "repetition"), 0.2, 0.21),
        ("refusals", ("candidate", "refusals"), 0.0625 - 0.0125, 0.0725),
        ("perplexity", ("perplexity", "candidate"), 4.0, 4.1),
    ],
)
def test_a_threshold_may_be_reached_and_not_passed(name, path, at, beyond):
    clear = {"eos_rate": interval(-0.2, -0.3, -0.1), "repetition": interval(0.2, 0.1, 0.3)}  # worse than the opponent
    content = GOOD | {"difference": {"vs_sft": difference(), "vs_opponent": difference(**clear)}}
    assert checks(changed(content, *path, to=at))[name].verdict == "passed"
    found = checks(changed(content, *path, to=beyond))
    assert found[name].verdict == "failed"
    assert decide(list(found.values())) == "reject"
    assert reasons(list(found.values())) == [found[name].sentence]


def compared(name, ours, theirs, low, high):
    """The evaluation of a candidate and an opponent that differ in one figure."""
    content = changed(changed(GOOD, "candidate", name, to=ours), "opponent", name, to=theirs)
    return changed(content, "difference", "vs_opponent", name, to=interval(round(ours - theirs, 3), low, high))


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "low", "high", "sentence"),
    [
        (
            "eos_rate",
            *(0.175, 0.2, -0.06, 0.01),
            "Ended by EOS 0.175 >= 0.9, or not significantly worse than SFT: passed. SFT has 0.200; the difference is "
            "-0.025 [-0.060, +0.010]. evaluate.max_new_tokens cuts the answers of both: raise it.",
        ),
        (
            "repetition",
            *(0.31, 0.3, -0.02, 0.04),
            "Repeated 4-grams 0.310 <= 0.2, or not significantly worse than SFT: passed. SFT has 0.300; the difference "
            "is +0.010 [-0.020, +0.040].",
        ),
    ],
)
def test_a_candidate_no_worse_than_the_opponent_passes(name, ours, theirs, low, high, sentence):
    content = compared(name, ours, theirs, low, high)
    check = checks(content)[name]
    assert (check.verdict, check.figure, check.sentence) == ("passed", ours, sentence)
    assert decision(content) == "promote"


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "low", "high"),
    [("eos_rate", 0.5, 0.8, -0.35, -0.25), ("repetition", 0.5, 0.1, 0.3, 0.5)],
)
def test_a_candidate_worse_than_the_opponent_fails(name, ours, theirs, low, high):
    check = checks(compared(name, ours, theirs, low, high))[name]
    assert check.verdict == "failed"
    assert check.sentence.endswith("]: significantly worse.")


@pytest.mark.parametrize("gap", ["value", "low", "high"])
@pytest.mark.parametrize(("name", "ours"), [("eos_rate", 0.5), ("repetition", 0.5)])
def test_a_comparison_that_could_not_be_computed_excuses_nobody(name, ours, gap):
    content = compared(name, ours, ours, -0.1, 0.1)
    assert checks(content)[name].verdict == "passed"
    assert checks(changed(content, "difference", "vs_opponent", name, gap, to=None))[name].verdict == "failed"
    assert checks(changed(content, "opponent", name, to=None))[name].verdict == "failed"


def test_where_the_answers_of_both_are_cut_a_warning_says_so():
    [warning] = warnings(evidence(compared("eos_rate", 0.175, 0.2, -0.06, 0.01)), THRESHOLDS)
    assert warning.startswith("Of the answers of candidate and opponent, 0.175 and 0.200 end by EOS; evaluate.max_new")
    assert warnings(evidence(compared("eos_rate", 0.175, 0.95, -0.9, -0.7)), THRESHOLDS) == []


@pytest.mark.parametrize(("low", "warns"), [(1.01, True), (1.0, False), (-2.5, False)])
def test_a_reward_that_mainly_punishes_cut_answers_is_warned_of(low: float, warns: bool):
    cut = {"share": 0.2, "gap": low + 0.25, "low": low, "high": low + 0.5}
    found = warnings(evidence(GOOD | {"sft_cut_answers": cut}), THRESHOLDS)
    assert [each.startswith("The training reward mainly punishes answers that evaluate.max_") for each in found] == [
        True
    ] * warns


def test_lengths_that_the_limit_has_cut_are_named():
    content = changed(compared("eos_rate", 0.98, 0.2, 0.7, 0.8), "candidate", "length", to=4.0)
    assert checks(content)["length_ratio"].sentence == (
        "Length of the answers, relative to those of SFT 0.40 >= 0.5: failed. Of the candidate's answers 0.980 end "
        "before evaluate.max_new_tokens, of those of SFT 0.200."
    )


def test_answers_may_be_neither_much_longer_nor_much_shorter():
    check = checks(changed(GOOD, "candidate", "length", to=5.0))["length_ratio"]
    assert (check.verdict, check.threshold) == ("passed", 1.5)
    check = checks(changed(GOOD, "candidate", "length", to=4.9))["length_ratio"]
    assert (check.verdict, check.threshold) == ("failed", 0.5)
    assert check.figure == pytest.approx(0.49)
    check = checks(changed(GOOD, "candidate", "length", to=16.0))["length_ratio"]
    assert (check.verdict, check.figure, check.threshold) == ("failed", 1.6, 1.5)


@pytest.mark.parametrize(
    ("low", "high", "conclusion", "threshold", "outcome"),
    [
        (0.51, 0.7, "better", 0.5, "passed"),
        (0.48, 0.6, "inconclusive", 0.5, "inconclusive"),
        (0.3, 0.49, "worse", 0.5, "failed"),
        (0.5, 0.5, "inconclusive", 0.5, "inconclusive"),  # the opponent itself
        (1.0, 1.0, "inconclusive", 0.5, "inconclusive"),  # one prompt: the sign test does not confirm it
        (0.55, 0.7, "better", 0.6, "inconclusive"),
        (0.46, 0.55, "inconclusive", 0.45, "passed"),  # not much worse is all that is asked
    ],
)
def test_win_rate(low, high, conclusion, threshold, outcome):
    content = changed(GOOD, "win_rate", "vs_opponent", to=rate((low + high) / 2, low, high, conclusion=conclusion))
    check = checks(content, thresholds=allowing(min_win_rate=threshold))["win_rate"]
    assert (check.verdict, check.figure) == (outcome, low)
    assert ("sign test" in check.sentence) == (outcome == "inconclusive" and low >= threshold)


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.5, 0.6, "passed"), (0.4, 0.6, "inconclusive"), (0.3, 0.49, "failed")]
)
def test_a_gain_that_is_only_length_is_no_gain(low, high, outcome):
    versus = interval((low + high) / 2, low, high)
    content = changed(GOOD, "length_controlled_win_rate", "vs_opponent", to=versus)
    assert checks(content)["win_rate_at_equal_length"].verdict == outcome


@pytest.mark.parametrize(
    ("threshold", "advice"),
    [
        # Of 100 prompts 45 won, 20 tied: variance .45 + .2 / 4 - .55^2 = .1975; 7.849 * .1975 / .05^2 = 620.1.
        (0.5, " About 621 prompts like these would show it (power 80 %)."),
        # 7.849 * .1975 / .02^2 = 3875.4.
        (0.53, " About 3,876 prompts like these would show it (power 80 %)."),
        # More such prompts would show the contrary.
        (0.55, ""),
        (0.6, ""),
    ],
)
def test_a_doubtful_win_says_how_many_prompts_would_show_that_it_exceeds_the_threshold(threshold, advice):
    doubtful = rate(0.55, 0.46, 0.64, wins=45, losses=35)
    content = changed(GOOD, "win_rate", "vs_opponent", to=doubtful) | {"prompts": 100}
    check = checks(content, thresholds=allowing(min_win_rate=threshold))["win_rate"]
    assert check.verdict == "inconclusive"
    assert check.sentence.endswith(f"The win rate is 0.550 [0.460, 0.640].{advice}")
    # Turns of conversations vary together: by the interval the variance is 100 (.09 / 1.960)^2 = .2109.
    clustered = checks(content | {"conversations": 40})["win_rate"]
    assert "About 662 prompts like these would" in clustered.sentence  # 7.849 * .2109 / .05^2 = 662.0


def test_a_doubtful_win_is_inconclusive_only_if_everything_else_passes():
    doubtful = changed(GOOD, "win_rate", "vs_opponent", "low", to=0.45)
    assert decision(doubtful) == "inconclusive"
    assert decision(changed(doubtful, "kl", "mean", to=99.0)) == "reject"


@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_figure_that_could_not_be_computed_does_not_pass(name, path):
    content = changed(GOOD, *path, to=None)
    check = checks(content)[name]
    assert (check.verdict, check.figure) == ("failed", None)
    assert check.sentence.endswith(" could not be computed: failed.")
    assert decision(content) == "reject"


@pytest.mark.parametrize(("name", "path"), CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.9", True, {}, "absent"])
def test_a_figure_that_is_not_as_the_layout_says_is_an_error_and_no_rejection(name, path, value):
    content = changed(GOOD, *path, to=value)
    if value == "absent":
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[f"{name} renamed"] = inner.pop(path[-1])
    with pytest.raises(InputError, match=r"metrics/evaluate.json has not the layout of this version \(.*: run dvc"):
        checks(content)


def test_an_opponent_without_words_has_no_ratio():
    assert checks(changed(GOOD, "opponent", "length", to=0.0))["length_ratio"].verdict == "failed"


def test_no_checks_promote_nothing():
    assert decide([]) == "reject"


def test_lines_name_the_opponent():
    found = checks(opponent=Opponent("champion", 4, "ab.dir"))
    assert found["win_rate"].sentence.startswith("Win rate over champion version 4, lower bound 0.600 >= 0.5: passed.")


def test_reward_up_and_ground_truth_down_is_a_warning():
    up, down = interval(0.3, 0.2, 0.4), interval(-0.2, -0.3, -0.1)
    hacked = copy.deepcopy(GOOD)
    hacked["ground_truth"] = {"politeness": by_reward()}
    hacked["difference"] = {
        "vs_sft": difference(reward=up, ground_truth={"politeness": down}),
        "vs_opponent": difference(reward=down, ground_truth={"politeness": down}),
    }
    assert warnings(evidence(hacked), THRESHOLDS) == [
        "Reward hacking: over SFT the training reward rose by 0.300 [0.200, 0.400] while the ground-truth reward "
        "politeness changed by -0.200 [-0.300, -0.100]."
    ]
    assert warnings(evidence(), THRESHOLDS) == []


def test_check_is_plain_data():
    assert Check("kl", 1.0, 2.0, "passed", "Well.")._asdict() == {
        "name": "kl",
        "figure": 1.0,
        "threshold": 2.0,
        "verdict": "passed",
        "sentence": "Well.",
    }
