"""The gate's check of the over-optimisation curve: what fails it, and what it cannot show."""

import pytest

from tasks.evaluation.gate.checks import left_out
from tests.evaluation.evaluations import (
    GOOD,
    allowing,
    by_reward,
    changed,
    checks,
    decision,
    difference,
    evidence,
    interval,
    point,
    rate,
)


def test_a_gain_by_the_training_reward_that_is_a_loss_by_the_held_out_one_fails():
    better = rate(0.7, conclusion="better")
    content = changed(GOOD, "over_optimisation", 1, "last_over_this", "reward", to=better)
    check = checks(content)["over_optimisation"]
    assert (check.verdict, check.figure, check.threshold) == ("failed", 1, 0)
    assert check.sentence == (
        "Over-optimised evaluation points 1 <= 0: failed. Over the policy at step 40, the final policy wins "
        "0.700 [0.400, 0.600] by the training reward and 0.400 [0.400, 0.600] by the held-out reward model."
    )
    assert decision(content) == "reject"
    allowed = checks(content, thresholds=allowing(max_over_optimised_points=1))["over_optimisation"]
    assert (allowed.verdict, allowed.figure, allowed.threshold) == ("passed", 1, 1)


def test_of_over_optimised_points_the_one_that_lost_most_is_named():
    better, worse = rate(conclusion="better"), rate(conclusion="worse")
    points = [
        point(0, 0.0, rate(), {"reward": better, "held_out": worse}),
        point(5, 1.0, rate(), {"reward": better, "held_out": worse | {"high": 0.3}}),
        point(9, 2.0, rate(), {"reward": rate(), "held_out": worse | {"high": 0.1}}),
        point(12, 3.0, rate(), None),
    ]
    for each in points:
        each["scores"] = each["win_rate"] = {name: interval(0.5, 0.4, 0.6) for name in ("reward", "held_out")}
    check = checks(GOOD | {"over_optimisation": points})["over_optimisation"]
    assert check.figure == 2
    assert "Over the policy at step 5, " in check.sentence


def test_without_a_held_out_reward_model_the_ground_truth_shows_over_optimisation():
    over = {"reward": rate(conclusion="better"), "politeness": rate(), "brevity": rate(0.3, conclusion="worse")}
    content = GOOD | {"held_out": None, "ground_truth": {"politeness": by_reward(), "brevity": by_reward()}}
    content["difference"] = {
        key: difference(held_out=None, ground_truth=dict.fromkeys(("politeness", "brevity"), interval(0, -1, 1)))
        for key in ("vs_sft", "vs_opponent")
    }
    content["over_optimisation"] = [
        changed(GOOD["over_optimisation"][0], "last_over_this", to=over),
        GOOD["over_optimisation"][2],
    ]
    found = checks(content, reward=None, held_out=None)
    check = found["over_optimisation"]
    assert (check.verdict, check.figure) == ("failed", 1)
    assert check.sentence.endswith("and 0.300 [0.400, 0.600] by the ground-truth reward brevity.")
    assert not {"held_out_reward", "reward_accuracy", "held_out_accuracy"} & set(found)
    assert [line.split(" ", 1)[0] for line in left_out(evidence(content, None, None))] == [
        "reward_accuracy",
        "held_out_reward",
    ]


def test_what_no_reward_can_show_is_left_out_and_named():
    content = GOOD | {"held_out": None}
    assert "over_optimisation" not in checks(content, reward=None, held_out=None)
    assert left_out(evidence(content, None, None))[-1] == (
        "over_optimisation is left out: no reward is independent of the training reward."
    )
    assert left_out(evidence()) == []


def test_a_training_without_evaluation_points_has_no_over_optimisation_and_says_so():
    content = GOOD | {"over_optimisation": []}
    assert "over_optimisation" not in checks(content)
    assert left_out(evidence(content)) == ["over_optimisation was not measured: the training had no evaluation points."]


@pytest.mark.parametrize("key", ["value", "low", "high"])
@pytest.mark.parametrize("name", ["reward", "held_out"])
def test_an_over_optimisation_curve_with_a_gap_does_not_pass(key, name):
    content = changed(GOOD, "over_optimisation", 0, "last_over_this", name, key, to=None)
    check = checks(content)["over_optimisation"]
    assert (check.verdict, check.figure) == ("failed", None)
    assert check.sentence == "Over-optimised evaluation points could not be computed: failed."


def test_an_over_optimisation_curve_without_a_point_before_the_last_does_not_pass():
    content = GOOD | {"over_optimisation": GOOD["over_optimisation"][-1:]}
    assert checks(content)["over_optimisation"].verdict == "failed"
