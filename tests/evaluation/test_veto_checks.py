"""The gate's vetoes: ground-truth rewards, an LLM judge, categories that are worse."""

import pytest

from tests.evaluation.evaluations import (
    GOOD,
    allowing,
    by_reward,
    category,
    changed,
    checks,
    decision,
    rate,
)

JUDGE = {
    "model": "judge-7b",
    "prompts": 120,
    "same_answers": 0,
    "without_verdict": 0,
    "asked_again": 0,
    "agreement": 0.75,
    "first_preferred": 0.5,
    "vs_opponent": rate(),
}


@pytest.mark.parametrize(("high", "outcome"), [(0.5, "promote"), (0.49, "reject")])
def test_every_ground_truth_reward_has_a_veto(high, outcome):
    content = GOOD | {
        "ground_truth": {"brevity": by_reward(), "politeness": by_reward(vs_opponent=rate(0.45, high=high))}
    }
    assert decision(content) == outcome
    check = checks(content)["ground_truth.politeness"]
    assert check.sentence.startswith(
        f"Win rate over SFT by the ground-truth reward politeness, upper bound {high:.3f} >= 0.5: "
    )
    assert checks(content)["ground_truth.brevity"].verdict == "passed"


@pytest.mark.parametrize(
    ("silent", "high", "verdict", "end"),
    [
        (0, 0.6, "passed", "0.600 >= 0.5: passed. The win rate is 0.500 [0.400, 0.600]."),
        (3, 0.5, "passed", "[0.400, 0.500]. 3 prompts have no verdict."),
        (0, 0.49, "failed", "0.490 >= 0.5: failed. The win rate is 0.500 [0.400, 0.490]."),
    ],
)
def test_an_llm_judge_has_a_veto_where_one_is_set(silent, high, verdict, end):
    content = GOOD | {"llm_judge": JUDGE | {"without_verdict": silent, "vs_opponent": rate(high=high)}}
    check = checks(content)["llm_judge"]
    assert (check.verdict, check.figure, check.threshold) == (verdict, high, 0.5)
    assert check.sentence.startswith("Win rate over SFT by the LLM judge judge-7b, upper bound ")
    assert check.sentence.endswith(end)
    assert decision(content) == ("promote" if verdict == "passed" else "reject")


def test_an_llm_judge_with_too_few_verdicts_does_not_pass():
    check = checks(GOOD | {"llm_judge": JUDGE | {"vs_opponent": None}})["llm_judge"]
    assert (check.verdict, check.figure) == ("failed", None)


def test_a_category_that_is_worse_is_one_too_many():
    worse = category(vs_opponent=rate(0.2, 0.1, 0.3, conclusion="worse"))
    content = GOOD | {"categories": GOOD["categories"] | {"war": worse}}
    check = checks(content)["category_regressions"]
    assert (check.verdict, check.figure, check.threshold) == ("failed", 1, 0)
    assert check.sentence == (
        "Categories worse than SFT 1 <= 0: failed. Win rates there: war 0.200 [0.100, 0.300]. 1 of 3 have too few "
        "prompts for a conclusion: tax."
    )
    assert decision(content) == "reject"
    assert decision(content, thresholds=allowing(max_category_regressions=1)) == "promote"


def test_prompts_without_categories_pass():
    check = checks(GOOD | {"categories": {}})["category_regressions"]
    assert (check.verdict, check.figure) == ("passed", 0)
    assert check.sentence.endswith(" The prompts have no categories.")


def test_of_many_small_categories_some_are_named():
    few = {f"kind {number}": category(enough=False) for number in range(10)}
    sentence = checks(GOOD | {"categories": few})["category_regressions"].sentence
    assert sentence.endswith(
        "10 of 10 have too few prompts for a conclusion: " + ", ".join(list(few)[:8]) + " and 2 more."
    )


@pytest.mark.parametrize("key", ["value", "low", "high"])
def test_categories_with_a_gap_do_not_pass(key):
    content = changed(GOOD, "categories", "tax", "win_rate", "vs_opponent", key, to=None)
    check = checks(content)["category_regressions"]
    assert (check.verdict, check.figure) == ("failed", None)
