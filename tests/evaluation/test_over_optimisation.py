from collections import Counter

import numpy as np
import pytest

from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.over_optimisation import EvaluationPoint, over_optimisation_curve, point_rows
from tasks.evaluation.summary import rounded
from tests.evaluation.evaluations import GOOD, checks

RESAMPLING = Resampling(resamples=200, confidence=0.95, seed=1)
PROMPTS = 128


def point(step, training, held_out, kl=0.0, **ground_truth):
    count = len(training)
    ids, answers = [f"id{number}" for number in range(count)], [f"answer at {step}"] * count
    scores = {"reward": training, "held_out": held_out, **ground_truth}
    return EvaluationPoint(step, ids, answers, [kl] * count, scores)


def along(seed, training, held_out, spread=1.0):
    """Evaluation points along which both mean scores go as given, in deviations of one answer's score.

    The deviation between prompts is twice that. Half of an answer's own variance is common to both scores.
    """
    generator = np.random.default_rng(seed)
    prompts = 2 * generator.normal(size=PROMPTS)

    def scores(height, shared):
        noise = generator.normal(size=PROMPTS)
        return (height + prompts + spread * (shared + noise) / 2**0.5).tolist()

    found = []
    for step, (high, low) in enumerate(zip(training, held_out, strict=True)):
        shared = generator.normal(size=PROMPTS)
        found.append(point(step, scores(high, shared), scores(low, shared)))
    return found


def check_of(points):
    """The gate's check of a training."""
    curve = rounded({"over_optimisation": over_optimisation_curve(points, RESAMPLING._replace(resamples=100))})
    return checks(GOOD | curve)["over_optimisation"]


def test_a_point_is_compared_with_the_first_and_the_last_with_it():
    points = [
        point(0, [0.0] * 4, [1.0] * 4, rule=[0.5] * 4),
        point(5, [1.0, 1.0, 1.0, -1.0], [1.0, 0.0, 0.0, 2.0], kl=0.5, rule=[0.5, 1.0, 1.0, 0.0]),
        point(9, [2.0] * 4, [0.0] * 4, kl=2.0, rule=[0.0] * 4),
    ]
    first, second, last = over_optimisation_curve(points, RESAMPLING)
    assert [each["step"] for each in (first, second, last)] == [0, 5, 9]
    assert second["kl"] == {"mean": 0.5, "standard_error": 0.0}
    assert (second["scores"]["reward"].value, second["scores"]["held_out"].value) == (0.5, 0.75)
    # three of four won; one of four, a tie being half a win, and another won; two won, one tied, one lost
    rates = {name: interval.value for name, interval in second["win_rate"].items()}
    assert rates == {"reward": 0.75, "held_out": (0.5 + 1) / 4, "rule": (0.5 + 2) / 4}
    assert {interval.value for interval in first["win_rate"].values()} == {0.5}
    # two earlier points: each interval misses half as often
    at_once = RESAMPLING._replace(confidence=0.975)
    assert second["last_over_this"]["held_out"] == win_rate([0.0] * 4, [1.0, 0.0, 0.0, 2.0], at_once)
    assert last["last_over_this"] is None


def test_prompts_of_a_point_that_are_turns_are_drawn_together():
    points = [point(0, [0.0] * 8, [1.0] * 8), point(5, [1.0] * 8, [0.0] * 8)]
    together = [each._replace(conversations=tuple("aabbccdd")) for each in points]
    curves = [over_optimisation_curve(each, RESAMPLING) for each in (points, together)]
    alone, found = (first["last_over_this"]["held_out"].sign_test for first, _ in curves)
    assert (alone, found) == (2 / 2**8, 2 / 2**4)


def test_no_points_have_no_curve():
    assert over_optimisation_curve([], RESAMPLING) == []


def test_without_a_held_out_reward_model_every_ground_truth_reward_is_a_comparison():
    points = [point(step, [float(step)] * 4, [0.0] * 4, rule=[0.0] * 4, brevity=[1.0] * 4) for step in (0, 5)]
    for each in points:
        del each.scores["held_out"]
    # one earlier point and two rewards: each interval misses half as often
    found = over_optimisation_curve(points, RESAMPLING)[0]["last_over_this"]
    assert set(found) == {"reward", "rule", "brevity"}
    assert found["reward"] == win_rate([5.0] * 4, [0.0] * 4, RESAMPLING._replace(confidence=0.975))


def test_rows_hold_every_answer_with_its_scores():
    points = [point(3, [1.0, 2.0], [0.5, -0.5], kl=0.25)]
    assert list(point_rows(points))[1] == {
        "step": 3, "id": "id1", "answer": "answer at 3", "kl": 0.25, "scores": {"reward": 2.0, "held_out": -0.5}
    }  # fmt: skip


FLAT, RISING = [0.0] * 9, [0.25 * part for part in range(9)]


@pytest.mark.slow
@pytest.mark.parametrize("training", [FLAT, RISING], ids=["nothing changes", "the training reward rises alone"])
def test_false_alarms_are_no_more_than_the_confidence_allows(training):
    # 8 comparisons at a time; 1 - .95 of 100 trainings are 5.
    assert sum(check_of(along(seed, training, FLAT)).verdict == "failed" for seed in range(100)) <= 5


# The held-out reward rises to .75 and falls back to where it was: compared with SFT alone nothing would be seen.
TURNING = [0.0, 0.25, 0.5, 0.75, 0.75, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.slow
def test_a_held_out_reward_that_falls_while_the_training_reward_rises_is_noticed():
    counts = Counter[int]()
    for seed in range(20):
        check = check_of(along(seed, RISING, TURNING))
        counts.update(
            each["step"]
            for each in over_optimisation_curve(along(seed, RISING, TURNING), RESAMPLING)[:-1]
            if each["last_over_this"]["reward"].conclusion == "better"
            and each["last_over_this"]["held_out"].conclusion == "worse"
        )
        assert (check.verdict, check.threshold) == ("failed", 0)
    # By the held-out reward the last answers lose by .75 deviations to those of steps 3 to 5: of 128 prompts they win
    # 30 %, five standard errors below a half. To those of step 2 they lose by .5, three standard errors; at step 6 they
    # also gain by only .5. At steps 1 and 7 it is .25, below what 8 comparisons notice, and at step 0 nothing is lost.
    assert all(counts[step] >= 18 for step in (3, 4, 5))
    assert 6 <= counts[2] <= 18
    assert 0 < counts[6] < counts[2]
    assert counts[0] + counts[1] + counts[7] <= 1


def test_the_line_names_the_point_that_the_final_policy_lost_most_to():
    check = check_of(along(0, RISING, TURNING))
    assert check.figure == 4  # steps 2 to 5 of this training
    assert "Over the policy at step 3, the final policy wins 0.789 [" in check.sentence
    assert check.sentence.endswith("by the held-out reward model.")


@pytest.mark.parametrize("path", [FLAT, RISING, RISING[::-1]], ids=["flat", "up", "down"])
def test_where_both_rewards_agree_nothing_is_over_optimised(path):
    assert {check_of(along(seed, path, path)).verdict for seed in range(10)} == {"passed"}
