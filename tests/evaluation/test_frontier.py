import numpy as np
import pytest

from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.gate.checks import Evidence, run_checks
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.over_optimisation import Mark, frontier, rows
from tasks.evaluation.summary import rounded
from tests.evaluation.test_checks import JUDGE, REWARD, THRESHOLDS

RESAMPLING = Resampling(resamples=200, confidence=0.95, seed=1)
PROMPTS = 128


def mark(step, reward, judge, kl=0.0, **more):
    count = len(reward)
    ids, answers = [f"id{number}" for number in range(count)], [f"said at {step}"] * count
    return Mark(step, ids, answers, [kl] * count, {"reward": reward, "held_out": judge, **more})


def along(seed, proxy, judge, spread=1.0):
    """Marks of a training along which the mean scores of both judges go as given, in deviations of one answer's score.

    What a prompt does to every answer is twice that, and an answer the judges both like or dislike half of it.
    """
    generator = np.random.default_rng(seed)
    prompts = 2 * generator.normal(size=PROMPTS)

    def scores(height, shared):
        noise = generator.normal(size=PROMPTS)
        return (height + prompts + spread * (shared + noise) / 2**0.5).tolist()

    found = []
    for step, (high, held_out) in enumerate(zip(proxy, judge, strict=True)):
        shared = generator.normal(size=PROMPTS)
        found.append(mark(step, scores(high, shared), scores(held_out, shared)))
    return found


def said(marks):
    """The check's word on a training."""
    evaluation = rounded({"frontier": frontier(marks, RESAMPLING._replace(resamples=100))})
    checks = run_checks(Evidence(evaluation, REWARD, JUDGE, Opponent("sft", None, None)), THRESHOLDS)
    return next(check for check in checks if check.name == "over_optimisation")


def test_a_mark_is_measured_against_the_first_and_the_last_against_it():
    marks = [
        mark(0, [0.0] * 4, [1.0] * 4, gold=[0.5] * 4),
        mark(5, [1.0, 1.0, 1.0, -1.0], [1.0, 0.0, 0.0, 2.0], kl=0.5, gold=[0.5, 1.0, 1.0, 0.0]),
        mark(9, [2.0] * 4, [0.0] * 4, kl=2.0, gold=[0.0] * 4),
    ]
    first, second, last = frontier(marks, RESAMPLING)
    assert [each["step"] for each in (first, second, last)] == [0, 5, 9]
    assert second["kl"] == {"mean": 0.5, "standard_error": 0.0}
    assert (second["reward"].value, second["held_out"].value) == (0.5, 0.75)
    # three of four won; one of four, a tie being half a win, and another won; two won, one tied, one lost
    rates = {name: interval.value for name, interval in second["win_rate"].items()}
    assert rates == {"reward": 0.75, "held_out": (0.5 + 1) / 4, "ground_truth": (0.5 + 2) / 4}
    assert {interval.value for interval in first["win_rate"].values()} == {0.5}
    # two earlier marks: each interval misses half as often
    at_once = RESAMPLING._replace(confidence=0.975)
    assert second["last_over_this"]["held_out"] == win_rate([0.0] * 4, [1.0, 0.0, 0.0, 2.0], at_once)
    assert last["last_over_this"] is None


def test_prompts_of_a_mark_that_are_turns_are_drawn_together():
    marks = [mark(0, [0.0] * 8, [1.0] * 8), mark(5, [1.0] * 8, [0.0] * 8)]
    together = [each._replace(conversations=tuple("aabbccdd")) for each in marks]
    alone, found = (frontier(each, RESAMPLING)[0]["last_over_this"]["held_out"].sign_test for each in (marks, together))
    assert (alone, found) == (2 / 2**8, 2 / 2**4)


def test_no_marks_have_no_frontier():
    assert frontier([], RESAMPLING) == []


def test_rows_hold_every_answer_with_its_scores():
    marks = [mark(3, [1.0, 2.0], [0.5, -0.5], kl=0.25)]
    assert list(rows(marks))[1] == {
        "step": 3, "id": "id1", "answer": "said at 3", "kl": 0.25, "reward": 2.0, "held_out": -0.5
    }  # fmt: skip


FLAT, RISING = [0.0] * 9, [0.25 * part for part in range(9)]


@pytest.mark.slow
@pytest.mark.parametrize("proxy", [FLAT, RISING], ids=["nothing changes", "the proxy rises and the judge stays"])
def test_false_alarms_are_no_more_than_the_confidence_allows(proxy):
    # 8 comparisons at a time; 1 - .95 of 100 trainings are 5.
    assert sum(said(along(seed, proxy, FLAT)).verdict == "failed" for seed in range(100)) <= 5


def test_a_judge_that_turns_while_the_proxy_rises_is_noticed():
    # It rises to .75 and falls back to where it was: beside SFT nothing would be seen.
    turning = [0.0, 0.25, 0.5, 0.75, 0.75, 0.75, 0.5, 0.25, 0.0]
    found = [said(along(seed, RISING, turning)) for seed in range(20)]
    assert sum(check.verdict == "failed" for check in found) >= 18
    check = said(along(0, RISING, turning))
    assert (check.threshold, check.figure) == (0, pytest.approx(3, abs=2))  # marks that were better
    assert "the reward model" in check.sentence


@pytest.mark.parametrize("path", [FLAT, RISING, RISING[::-1]], ids=["flat", "up", "down"])
def test_where_both_say_the_same_nothing_has_parted(path):
    assert {said(along(seed, path, path)).verdict for seed in range(10)} == {"passed"}
