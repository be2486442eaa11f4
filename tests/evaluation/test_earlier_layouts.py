from tasks.evaluation.earlier_layouts import in_todays_layout
from tests.evaluation.evaluations import GOOD

RATE = {"value": 0.7, "low": 0.6, "high": 0.8, "wins": 9}
INTERVAL = {"value": 0.1, "low": 0.0, "high": 0.2}
FLAT = {
    "held_out": {"candidate": 0.5, "vs_sft": RATE},
    "ground_truth": {"candidate": 0.9, "sft": 0.5, "vs_sft": RATE},
    "difference": {"vs_sft": {"reward": INTERVAL, "ground_truth": INTERVAL}},
    "best_of_sft": [
        {"n": 2, "kl": 0.2, "reward": INTERVAL, "ground_truth": INTERVAL, "win_rate": {"ground_truth": INTERVAL}}
    ],
    "frontier": [{"step": 0, "kl": {"mean": 0.0}, "reward": INTERVAL, "last_over_this": {"held_out": RATE}}],
}


def test_the_one_rule_of_an_earlier_release_gets_its_name():
    assert in_todays_layout(FLAT) == {
        "held_out": FLAT["held_out"],
        "ground_truth": {"order_rule": FLAT["ground_truth"]},
        "difference": {"vs_sft": {"reward": INTERVAL, "ground_truth": {"order_rule": INTERVAL}}},
        "best_of_sft": [
            {
                "n": 2,
                "kl": 0.2,
                "scores": {"reward": INTERVAL, "order_rule": INTERVAL},
                "win_rate": {"order_rule": INTERVAL},
            }
        ],
        "over_optimisation": [
            {"step": 0, "kl": {"mean": 0.0}, "scores": {"reward": INTERVAL}, "last_over_this": {"held_out": RATE}}
        ],
    }


def test_differences_in_the_place_of_win_rates_are_left_out():
    found = in_todays_layout({"ground_truth": {"candidate": 0.9, "vs_sft": INTERVAL}})
    assert found == {"ground_truth": {"order_rule": {"candidate": 0.9}}}


def test_what_is_of_today_stays_as_it_is():
    assert in_todays_layout(GOOD) == GOOD
    assert in_todays_layout({}) == {}
