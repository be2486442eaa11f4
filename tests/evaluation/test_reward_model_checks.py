"""The gate's checks of the reward models: accuracy on held-out pairs, and baselines without a model."""

from typing import Any

import pytest

from tasks.evaluation.gate.checks import warnings
from tests.evaluation.evaluations import (
    HELD_OUT_MODEL,
    THRESHOLDS,
    baseline,
    changed,
    checks,
    decision,
    evidence,
    reward_model,
)


def test_a_held_out_reward_model_no_better_than_chance_fails():
    assert decision(held_out=reward_model(0.6, 0.5)) == "promote"
    check = checks(held_out=reward_model(0.55, 0.49))["held_out_accuracy"]
    assert (check.verdict, check.figure) == ("failed", 0.49)
    assert decision(held_out=reward_model(0.55, 0.49)) == "reject"


def test_pairs_that_share_prompts_are_counted_as_fewer():
    def sentence(pairs, effective_pairs):
        accuracy = HELD_OUT_MODEL["accuracy"] | {"pairs": pairs, "effective_pairs": effective_pairs}
        return checks(held_out=reward_model(accuracy=accuracy))["held_out_accuracy"].sentence

    assert sentence(646, 244.3).endswith(
        "0.600 >= 0.5: passed. The 646 pairs share prompts and count as 244 independent ones."
    )
    assert sentence(482, 480.8).endswith("0.600 >= 0.5: passed.")


def test_the_lower_bound_of_the_reward_models_accuracy_counts():
    assert checks(reward=reward_model(0.7, 0.6))["reward_accuracy"].verdict == "passed"
    assert decision(reward=reward_model(0.7, 0.59)) == "reject"
    check = checks(reward=reward_model(0.7, None))["reward_accuracy"]
    assert (check.verdict, check.figure) == ("failed", None)


def with_baselines(longer_wins: float, tf_idf: float) -> dict[str, Any]:
    """A reward model whose differences from the baselines have these lower bounds."""
    return reward_model(baselines={"longer_wins": baseline(0.5, longer_wins), "tf_idf": baseline(0.7, tf_idf)})


@pytest.mark.parametrize(
    ("lows", "verdict"), [((0.1, 0.02), "passed"), ((0.1, 0.0), "failed"), ((-0.1, 0.2), "failed")]
)
def test_where_it_must_the_reward_model_beats_every_baseline(lows: tuple[float, float], verdict: str):
    required = THRESHOLDS.model_copy(update={"reward_beats_baselines": True})
    check = checks(reward=with_baselines(*lows), thresholds=required)["reward_baselines"]
    assert (check.figure, check.verdict) == (min(lows), verdict)
    assert "reward_baselines" not in checks(reward=with_baselines(*lows))


def test_a_difference_that_could_not_be_computed_does_not_pass():
    unknown = {"value": None, "low": None, "high": None}
    reward = changed(with_baselines(0.1, 0.1), "baselines", "tf_idf", "difference", to=unknown)
    required = THRESHOLDS.model_copy(update={"reward_beats_baselines": True})
    assert checks(reward=reward, thresholds=required)["reward_baselines"].verdict == "failed"


def test_reward_models_that_know_no_more_than_words_are_warned_of():
    [warning] = warnings(evidence(held_out=with_baselines(0.1, -0.01)), THRESHOLDS)
    assert warning == (
        "The held-out reward model is not significantly better than a baseline without a model (TF-IDF with logistic "
        "regression) on the same held-out pairs: accuracy 0.750 and 0.700, difference 0.090 [-0.010, 0.190]."
    )
