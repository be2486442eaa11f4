import copy
from typing import Any

import pytest

from tasks.evaluation.gate.checks import Check, Evidence, decide, figure, reasons, run_checks, warnings
from tasks.evaluation.opponent import Opponent
from tasks.settings.params import Gate

THRESHOLDS = Gate(
    min_win_rate=0.5,
    min_held_out_win_rate=0.5,
    max_over_optimised_points=0,
    max_category_regressions=0,
    max_kl=10.0,
    min_reward_accuracy=0.6,
    min_held_out_accuracy=0.5,
    min_length_ratio=0.5,
    max_length_ratio=1.5,
    min_eos_rate=0.9,
    max_repetition=0.2,
    max_refusals_gained=0.05,
    max_perplexity_ratio=2.0,
)
RATE = {"value": 0.5, "low": 0.4, "high": 0.6, "verdict": "inconclusive"}
GOOD: dict[str, Any] = {
    "candidate": {"length": 12.0, "eos_rate": 0.95, "repetition": 0.01, "refusals": 0.02},
    "opponent": {"length": 10.0, "refusals": 0.01},
    "win_rate": {"vs_opponent": {"value": 0.7, "low": 0.6, "high": 0.8, "verdict": "better"}},
    "length_controlled_win_rate": {"vs_opponent": {"value": 0.65, "low": 0.55, "high": 0.75}},
    "held_out": {"vs_opponent": {"value": 0.55, "low": 0.45, "high": 0.65, "verdict": "inconclusive"}},
    "frontier": [
        {"step": 0, "last_over_this": {"reward": RATE | {"verdict": "better"}, "held_out": RATE}},
        {"step": 40, "last_over_this": {"reward": RATE, "held_out": RATE | {"value": 0.4, "verdict": "worse"}}},
        {"step": 80, "last_over_this": None},
    ],
    "categories": {
        "law": {"enough_prompts": True, "win_rate": {"vs_opponent": RATE}},
        "tax": {"enough_prompts": False, "win_rate": {"vs_opponent": RATE}},
    },
    "kl": {"mean": 4.0, "standard_error": 0.2},
    "perplexity": {"candidate": 3.0, "sft": 2.0},
}
REWARD = {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8}}
JUDGE = {"accuracy": {"value": 0.65, "low": 0.6, "high": 0.7}}
SFT = Opponent("sft", None, None)
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


def changed(path, value, content=None):
    evaluation = copy.deepcopy(GOOD if content is None else content)
    inner = evaluation
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return evaluation


def run(evaluation, reward=REWARD, judge=JUDGE, thresholds=THRESHOLDS):
    return {check.name: check for check in run_checks(Evidence(evaluation, reward, judge, SFT), thresholds)}


def decision(*args, **kwargs):
    return decide(list(run(*args, **kwargs).values()))


def test_all_good_is_promoted_with_every_sentence_as_a_reason():
    checks = list(run(GOOD).values())
    assert [check.verdict for check in checks] == ["passed"] * 13
    assert decide(checks) == "promote"
    assert reasons(checks) == [check.sentence for check in checks]


@pytest.mark.parametrize(
    ("name", "path", "at", "beyond"),
    [
        ("kl", ("kl", "mean"), 10.0, 10.01),
        ("held_out_reward", ("held_out", "vs_opponent", "high"), 0.5, 0.49),
        ("length_ratio", ("candidate", "length"), 15.0, 15.1),
        ("eos_rate", ("candidate", "eos_rate"), 0.9, 0.89),
        ("repetition", ("candidate", "repetition"), 0.2, 0.21),
        ("refusals", ("candidate", "refusals"), 0.05, 0.07),
        ("perplexity", ("perplexity", "candidate"), 4.0, 4.1),
    ],
)
def test_a_threshold_may_be_reached_and_not_passed(name, path, at, beyond):
    assert run(changed(path, at))[name].verdict == "passed"
    check = run(changed(path, beyond))[name]
    assert check.verdict == "failed"
    assert decision(changed(path, beyond)) == "reject"
    assert reasons(list(run(changed(path, beyond)).values())) == [check.sentence]


def beside(name, ours, theirs, low, high):
    """The evaluation of a candidate and an opponent who differ in one figure."""
    evaluation = changed(("candidate", name), ours)
    evaluation["opponent"][name] = theirs
    evaluation["difference"] = {"vs_opponent": {name: {"value": round(ours - theirs, 3), "low": low, "high": high}}}
    return evaluation


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "low", "high", "said"),
    [
        (
            "eos_rate",
            *(0.175, 0.2, -0.06, 0.01),
            "The share of answers that end by themselves is 0.175: less than the 0.9 demanded; that of SFT is 0.200, a "
            "difference of -0.025 (interval -0.060 to +0.010): the limit, evaluate.max_new_tokens, cuts the answers of "
            "both alike, so raise it.",
        ),
        (
            "repetition",
            *(0.31, 0.3, -0.02, 0.04),
            "The share of repeated 4-grams in an answer is 0.310: more than the 0.2 allowed; that of SFT is 0.300, a "
            "difference of +0.010 (interval -0.020 to +0.040): the candidate has it from what it began as.",
        ),
    ],
)
def test_what_the_opponent_does_alike_is_no_fault_of_the_candidate(name, ours, theirs, low, high, said):
    evaluation = beside(name, ours, theirs, low, high)
    check = run(evaluation)[name]
    assert (check.verdict, check.figure, check.sentence) == ("passed", ours, said)
    assert decision(evaluation) == "promote"


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "low", "high"),
    [("eos_rate", 0.5, 0.8, -0.35, -0.25), ("repetition", 0.5, 0.1, 0.3, 0.5)],
)
def test_what_the_opponent_does_less_is_the_candidates_fault(name, ours, theirs, low, high):
    check = run(beside(name, ours, theirs, low, high))[name]
    assert check.verdict == "failed"
    assert check.sentence.endswith("): the candidate is worse.")


@pytest.mark.parametrize("gap", ["value", "low", "high"])
@pytest.mark.parametrize(("name", "ours"), [("eos_rate", 0.5), ("repetition", 0.5)])
def test_nobody_is_excused_by_a_comparison_that_was_not_made(name, ours, gap):
    evaluation = beside(name, ours, ours, -0.1, 0.1)
    del evaluation["difference"]["vs_opponent"][name][gap]
    assert run(evaluation)[name].verdict == "failed"
    assert run(changed(("candidate", name), ours))[name].verdict == "failed"


def test_where_both_are_cut_a_warning_says_what_was_judged():
    [warning] = warnings(beside("eos_rate", 0.175, 0.2, -0.06, 0.01), THRESHOLDS)
    assert warning.startswith("Of the answers of candidate and opponent 0.175 and 0.200 end by themselves")
    assert warnings(beside("eos_rate", 0.175, 0.95, -0.9, -0.7), THRESHOLDS) == []


def test_lengths_that_the_limit_has_cut_are_told_as_such():
    evaluation = changed(("candidate", "length"), 4.0, beside("eos_rate", 0.98, 0.2, 0.7, 0.8))
    assert run(evaluation)["length_ratio"].sentence == (
        "Answers have 0.40 times the length of those of SFT: less than the 0.5 demanded. Before "
        "evaluate.max_new_tokens end 0.980 of the candidate's answers and 0.200 of those of SFT."
    )


def test_answers_may_be_neither_much_longer_nor_much_shorter():
    check = run(changed(("candidate", "length"), 5.0))["length_ratio"]
    assert (check.verdict, check.threshold) == ("passed", 1.5)
    check = run(changed(("candidate", "length"), 4.9))["length_ratio"]
    assert (check.verdict, check.figure, check.threshold) == ("failed", pytest.approx(0.49), 0.5)
    assert check.sentence == "Answers have 0.49 times the length of those of SFT: less than the 0.5 demanded."


def test_a_judge_that_guesses_is_no_judge():
    assert decision(GOOD, judge={"accuracy": {"value": 0.6, "low": 0.5}}) == "promote"
    check = run(GOOD, judge={"accuracy": {"value": 0.55, "low": 0.49}})["held_out_accuracy"]
    assert (check.verdict, check.figure) == ("failed", 0.49)
    assert check.sentence.startswith("The lower bound of the held-out judge's accuracy is 0.490: less than")
    assert decision(GOOD, judge={"accuracy": {"value": 0.55, "low": 0.49}}) == "reject"
    shared = run(GOOD, judge={"accuracy": {"low": 0.6, "pairs": 646, "effective_pairs": 244.3}})["held_out_accuracy"]
    assert "is 0.600 (646 pairs, which share prompts and tell as much as 244 that do not): at" in shared.sentence
    hardly = run(GOOD, judge={"accuracy": {"low": 0.6, "pairs": 482, "effective_pairs": 480.8}})["held_out_accuracy"]
    assert "accuracy is 0.600: at least" in hardly.sentence
    assert run(GOOD, judge={})["held_out_accuracy"].sentence.endswith(
        "(metrics/held_out_reward.json has no such finite figure), so it does not pass."
    )


def test_the_lower_bound_of_the_reward_models_accuracy_counts():
    assert run(GOOD, {"accuracy": {"value": 0.7, "low": 0.6}})["reward_accuracy"].verdict == "passed"
    assert decision(GOOD, {"accuracy": {"value": 0.7, "low": 0.59}}) == "reject"


@pytest.mark.parametrize(
    ("low", "high", "verdict", "threshold", "outcome"),
    [
        (0.51, 0.7, "better", 0.5, "passed"),
        (0.48, 0.6, "inconclusive", 0.5, "inconclusive"),
        (0.3, 0.49, "worse", 0.5, "failed"),
        (0.5, 0.5, "inconclusive", 0.5, "inconclusive"),  # the opponent itself
        (1.0, 1.0, "inconclusive", 0.5, "inconclusive"),  # one prompt: the sign test is not convinced
        (0.55, 0.7, "better", 0.6, "inconclusive"),
        (0.46, 0.55, "inconclusive", 0.45, "passed"),  # not much worse is all that is asked
        (0.5, 0.7, None, 0.5, "inconclusive"),
    ],
)
def test_win_rate(low, high, verdict, threshold, outcome):
    versus = {"value": (low + high) / 2, "low": low, "high": high, "verdict": verdict}
    thresholds = THRESHOLDS.model_copy(update={"min_win_rate": threshold})
    check = run(changed(("win_rate", "vs_opponent"), versus), thresholds=thresholds)["win_rate"]
    assert check.verdict == outcome
    assert check.figure == low


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.5, 0.6, "passed"), (0.4, 0.6, "inconclusive"), (0.3, 0.49, "failed")]
)
def test_a_gain_that_is_only_length_is_no_gain(low, high, outcome):
    versus = {"value": (low + high) / 2, "low": low, "high": high}
    evaluation = changed(("length_controlled_win_rate", "vs_opponent"), versus)
    assert run(evaluation)["win_rate_at_equal_length"].verdict == outcome


def test_the_policy_may_not_gain_by_the_proxy_what_it_loses_by_the_judge():
    evaluation = copy.deepcopy(GOOD)
    even, better = "0.500 (interval 0.400 to 0.600)", "0.700 (interval 0.400 to 0.600)"
    assert run(evaluation)["over_optimisation"].sentence == (
        f"Over those of step 0 the last answers win {even} by the reward model, {even} by the held-out judge: "
        "against none of 2 marks have they surely gained by the one and lost by the other."
    )
    evaluation["frontier"][1]["last_over_this"]["reward"] = RATE | {"value": 0.7, "verdict": "better"}
    check = run(evaluation)["over_optimisation"]
    assert (check.verdict, check.figure, check.threshold) == ("failed", 1, 0)
    assert check.sentence == (
        f"Over those of step 40 the last answers win {better} by the reward model, 0.400 (interval 0.400 to 0.600) "
        "by the held-out judge: training went on past the point where the reward model could be trusted."
    )
    assert decision(evaluation) == "reject"


def test_marks_may_part_where_the_settings_allow_it():
    evaluation = copy.deepcopy(GOOD)
    evaluation["frontier"][1]["last_over_this"]["reward"] = RATE | {"verdict": "better"}
    allowing = THRESHOLDS.model_copy(update={"max_over_optimised_points": 1})
    check = run(evaluation, thresholds=allowing)["over_optimisation"]
    assert (check.verdict, check.figure, check.threshold) == ("passed", 1, 1)
    assert check.sentence.endswith("against 1 of 2 marks have they surely gained by the one and lost by the other.")


def test_of_marks_that_part_the_one_that_lost_most_is_named():
    parted = {"reward": RATE | {"verdict": "better"}, "held_out": RATE | {"verdict": "worse"}}
    worst = {"reward": RATE | {"verdict": "better"}, "held_out": RATE | {"high": 0.3, "verdict": "worse"}}
    marks = [
        {"step": 0, "last_over_this": parted},
        {"step": 5, "last_over_this": worst},
        {"step": 9, "last_over_this": {"reward": RATE, "held_out": RATE | {"high": 0.1, "verdict": "worse"}}},
        {"step": 12, "last_over_this": None},
    ]
    check = run(GOOD | {"frontier": marks})["over_optimisation"]
    assert check.figure == 2
    assert check.sentence.startswith("Over those of step 5 ")


@pytest.mark.parametrize(
    "marks",
    [
        None,
        3,
        [],
        GOOD["frontier"][2:],
        [None, *GOOD["frontier"]],
        [{"step": 0}, *GOOD["frontier"]],
        [GOOD["frontier"][0] | {"step": None}, *GOOD["frontier"]],
        [{"step": 0, "last_over_this": {"reward": RATE}}, *GOOD["frontier"]],
        [{"step": 0, "last_over_this": {"reward": RATE, "held_out": RATE | {"high": float("nan")}}}, *GOOD["frontier"]],
        [{"step": 0, "last_over_this": {"reward": RATE, "held_out": RATE | {"verdict": None}}}, *GOOD["frontier"]],
    ],
)
def test_a_frontier_with_a_gap_does_not_pass(marks):
    check = run(GOOD | {"frontier": marks})["over_optimisation"]
    assert (check.verdict, check.figure) == ("failed", None)
    assert "could not be computed (metrics/evaluate.json" in check.sentence


@pytest.mark.parametrize(("high", "outcome"), [(0.5, "promote"), (0.49, "reject")])
def test_the_known_rule_has_a_veto_where_there_is_one(high, outcome):
    evaluation = GOOD | {"ground_truth": {"vs_opponent": RATE | {"value": 0.45, "high": high}}}
    assert decision(evaluation) == outcome
    assert run(evaluation)["known_rule"].sentence.startswith(
        "By the known rule the win rate is 0.450 (interval 0.400 to"
    )
    assert "known_rule" not in run(GOOD)


@pytest.mark.parametrize("ground_truth", [None, 3, {}, {"vs_opponent": {"value": 0.5}}])
def test_a_known_rule_that_says_nothing_does_not_pass(ground_truth):
    assert run(GOOD | {"ground_truth": ground_truth})["known_rule"].verdict == "failed"


LLM = {"model": "judge-7b", "without_verdict": 0, "vs_opponent": RATE}


@pytest.mark.parametrize(
    ("silent", "high", "verdict", "said"),
    [
        (0, 0.6, "passed", "By judge-7b the win rate is 0.500 (interval 0.400 to 0.600): it does not contradict"),
        (3, 0.5, "passed", "0.500) (3 prompts without a verdict aside): it does not"),
        (0, 0.49, "failed", "0.490), all of it below 0.5: what pleases the reward model does not please it."),
    ],
)
def test_an_llm_judge_has_a_veto_where_one_is_set(silent, high, verdict, said):
    told = LLM | {"without_verdict": silent, "vs_opponent": RATE | {"high": high}}
    check = run(GOOD | {"llm_judge": told})["llm_judge"]
    assert (check.verdict, check.figure, check.threshold) == (verdict, high, 0.5)
    assert said in check.sentence
    assert decision(GOOD | {"llm_judge": told}) == ("promote" if verdict == "passed" else "reject")
    assert "llm_judge" not in run(GOOD)


@pytest.mark.parametrize(
    "told", [None, 3, {}, LLM | {"vs_opponent": None}, LLM | {"without_verdict": None}, {"vs_opponent": RATE}]
)
def test_an_llm_judge_that_said_too_little_does_not_pass(told):
    check = run(GOOD | {"llm_judge": told})["llm_judge"]
    assert (check.verdict, check.figure) == ("failed", None)
    assert "could not be computed (metrics/evaluate.json" in check.sentence


def of_category(enough=True, **rate):
    return {"enough_prompts": enough, "win_rate": {"vs_opponent": RATE | rate}}


def test_a_category_that_is_worse_is_one_too_many():
    worse = of_category(value=0.2, low=0.1, high=0.3, verdict="worse")
    evaluation = GOOD | {"categories": GOOD["categories"] | {"war": worse}}
    check = run(evaluation)["category_regressions"]
    assert (check.verdict, check.figure, check.threshold) == ("failed", 1, 0)
    assert check.sentence == (
        "In 1 of 3 categories of prompts the candidate is shown to be worse than SFT; war: 0.200 (interval 0.100 to "
        "0.300). No verdict is possible on 1 with too few prompts: tax."
    )
    assert decision(evaluation) == "reject"
    allowed = THRESHOLDS.model_copy(update={"max_category_regressions": 1})
    assert decision(evaluation, thresholds=allowed) == "promote"


def test_data_without_categories_pass():
    check = run(GOOD | {"categories": {}})["category_regressions"]
    assert (check.verdict, check.figure) == ("passed", 0)
    assert check.sentence == "The data name no category of prompts."


def test_of_many_small_categories_some_are_named():
    few = {f"kind {number}": of_category(enough=False) for number in range(10)}
    sentence = run(GOOD | {"categories": few})["category_regressions"].sentence
    assert sentence.endswith("on 10 with too few prompts: " + ", ".join(list(few)[:8]) + " and 2 more.")


@pytest.mark.parametrize(
    "categories",
    [
        None,
        3,
        [of_category()],
        {"law": None},
        {"law": {"enough_prompts": True}},
        {"law": of_category(enough=None)},
        {"law": of_category(), "tax": of_category(high=float("nan"))},
        {"law": of_category(verdict="fine")},
    ],
)
def test_categories_with_a_gap_do_not_pass(categories):
    check = run(GOOD | {"categories": categories})["category_regressions"]
    assert (check.verdict, check.figure) == ("failed", None)
    assert "could not be computed (metrics/evaluate.json" in check.sentence


@pytest.mark.parametrize(
    ("threshold", "advice"),
    [
        # Of 100 prompts 45 won, 20 tied: variance .45 + .2 / 4 - .55^2 = .1975; 7.849 * .1975 / .05^2 = 620.1.
        (0.5, " About 621 prompts like these would (power 80 %)."),
        # 7.849 * .1975 / .02^2 = 3875.4.
        (0.53, " About 3,876 prompts like these would (power 80 %)."),
        # More such prompts would show the contrary.
        (0.55, ""),
        (0.6, ""),
    ],
)
def test_a_doubtful_win_says_how_many_prompts_would_show_that_it_exceeds_the_threshold(threshold, advice):
    rate = {"value": 0.55, "low": 0.46, "high": 0.64, "ties": 0.2, "wins": 45, "losses": 35, "verdict": "inconclusive"}
    doubtful = GOOD | {"win_rate": {"vs_opponent": rate}, "prompts": 100, "confidence": 0.95}
    check = run(doubtful, thresholds=THRESHOLDS.model_copy(update={"min_win_rate": threshold}))["win_rate"]
    assert check.verdict == "inconclusive"
    assert check.sentence.endswith(f"these prompts do not settle whether it exceeds {threshold:g}.{advice}")
    # Turns of conversations vary together: by the interval the variance is 100 (.09 / 1.960)^2 = .2109.
    together = run(doubtful | {"conversations": 40}, thresholds=THRESHOLDS)["win_rate"]
    assert "About 662 prompts like these would" in together.sentence  # 7.849 * .2109 / .05^2 = 662.0


def test_a_doubtful_win_is_inconclusive_only_if_everything_else_passes():
    doubtful = changed(("win_rate", "vs_opponent", "low"), 0.45)
    assert decision(doubtful) == "inconclusive"
    assert decision(changed(("kl", "mean"), 99.0, doubtful)) == "reject"


@pytest.mark.parametrize(("name", "path"), CASES)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.9", True, {}, "absent"])
def test_a_figure_that_cannot_be_read_does_not_pass(name, path, value):
    evaluation = changed(path, value)
    if value == "absent":
        inner = evaluation
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
    check = run(evaluation)[name]
    assert (check.verdict, check.figure) == ("failed", None)
    assert "could not be computed (metrics/evaluate.json" in check.sentence
    assert decision(evaluation) == "reject"


@pytest.mark.parametrize("reward", [{}, {"accuracy": 0.9}, {"accuracy": {"low": float("nan")}}, {"accuracy": None}])
def test_an_unknown_reward_accuracy_does_not_pass(reward):
    assert run(GOOD, reward)["reward_accuracy"].sentence.endswith("so it does not pass.")
    assert decision(GOOD, reward) == "reject"


def test_an_opponent_that_says_nothing_has_no_ratio():
    assert run(changed(("opponent", "length"), 0.0))["length_ratio"].verdict == "failed"


def test_nothing_at_all_is_rejected():
    assert decision({}, {}) == "reject"
    assert decide([]) == "reject"


def test_sentences_name_the_opponent():
    checks = run_checks(Evidence(GOOD, REWARD, JUDGE, Opponent("champion", 4, "ab.dir")), THRESHOLDS)
    assert checks[0].sentence == (
        "The win rate over champion version 4 is 0.700 (interval 0.600 to 0.800): its lower bound reaches 0.5."
    )


def test_reward_up_and_gold_down_is_a_warning():
    gamed = {
        "difference": {
            "vs_sft": {"reward": {"low": 0.2}, "ground_truth": {"high": -0.1}},
            "vs_opponent": {"reward": {"low": -0.2}, "ground_truth": {"high": -0.1}},
        },
    }
    assert warnings(gamed, THRESHOLDS) == [
        "Against SFT the reward rose while the known rule's score fell: the reward is being gamed."
    ]
    assert warnings(GOOD, THRESHOLDS) == []


def test_figure_looks_up_numbers_alone():
    assert figure({"a": {"b": 2}}, "a", "b") == 2
    assert figure({"a": [1]}, "a", "b") is None
    assert figure({"a": 1}, "a", "b") is None


def test_check_is_plain_data():
    assert Check("kl", 1.0, 2.0, "passed", "Well.")._asdict() == {
        "name": "kl",
        "figure": 1.0,
        "threshold": 2.0,
        "verdict": "passed",
        "sentence": "Well.",
    }
