"""Win rates over people who differ: the interval holds for others like them."""

import numpy as np
import pytest
from scipy.special import expit

from tasks.evaluation.compare import Resampling, WinRate, win_rate
from tasks.evaluation.people.annotators import AnnotatorVote, over_annotators

RESAMPLING = Resampling(resamples=200, confidence=0.95, seed=1)


def rated(points: np.ndarray, names: str = "abcdefgh") -> tuple[WinRate, list[AnnotatorVote]]:
    """A win rate by prompts, and the votes that it rests on: a row a prompt, a column an annotator."""
    rate = win_rate(points.mean(axis=1), [0.5] * len(points), RESAMPLING)
    votes = [
        AnnotatorVote(names[column], f"{row}", f"{row}", float(value))
        for (row, column), value in np.ndenumerate(points)
    ]
    return rate, votes


def test_one_annotator_leaves_the_interval_as_it_is():
    rate, votes = rated(np.array([[1.0], [0.0], [1.0], [1.0]]))
    assert over_annotators(rate, votes, 0.95) == rate


def test_annotators_who_agree_leave_the_interval_as_it_is():
    rate, votes = rated(np.repeat(np.array([[1.0], [0.0], [1.0], [1.0]]), 3, axis=1))
    assert over_annotators(rate, votes, 0.95) == rate


def test_widened_by_hand():
    # Two prompts of three annotators, 1 1 0 and 1 1 0: scores 2/3; parts (1 - 2/3) / 6 = 1/18 and -2/18 of a vote.
    # Between prompts nothing: the bootstrap has no width to widen.
    rate, votes = rated(np.array([[1.0, 1.0, 0.0]] * 2))
    assert over_annotators(rate, votes, 0.95) == rate
    # 1 1 0 and 1 0 0: mean 1/2, parts 1/12 or -1/12. Prompts sum to 1/12 and -1/12: 2 (1/144 + 1/144) = 4/144.
    # Annotators 2/12, 0, -2/12: 3/2 * 8/144 = 12/144; votes 6/5 * 6/144 = 7.2/144. Added 4.8/144: 8.8/4 = 2.2 times.
    # Degrees 8.8^2 / (4^2 / 1 + 12^2 / 2) = 0.88: fewer than the one of prompts, so wider still.
    rate = WinRate(0.5, 0.49, 0.51, 0.0, 1, 1, 1.0, "inconclusive", None)
    wider = over_annotators(rate, rated(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))[1], 0.95)
    # t of 0.88 degrees over t of 1: 1.387513; 0.01 * sqrt 2.2 * 1.387513 = 0.020580
    assert (wider.low, wider.high) == pytest.approx((0.479420, 0.520580), abs=1e-6)


def test_a_conclusion_falls_where_people_differ_too_much():
    points = np.array([[1.0, 1.0, 1.0, 0.0]] * 30 + [[1.0, 1.0, 0.0, 0.0]] * 4 + [[0.0, 0.0, 1.0, 0.0]])
    rate, votes = rated(points)
    assert rate.conclusion == "better"
    found = over_annotators(rate, votes, 0.95)
    assert found.conclusion == "inconclusive"
    assert found.low < 0.5 < rate.low
    assert found[3:7] == rate[3:7]


@pytest.mark.parametrize(("annotators", "least"), [(5, 0.90), (8, 0.91)])
def test_intervals_hold_for_other_people_too(annotators, least):
    """Prompts and people have tastes of their own: logits of 1 and 0.7; the truth is over all of both."""
    generator = np.random.default_rng(3)
    prompts, rounds = 40, 300
    drawn = generator.standard_normal((2, 400_000))
    truth = float(expit(0.4 + drawn[0] + 0.7 * drawn[1]).mean())
    held = held_by_prompt = 0
    for _ in range(rounds):
        logits = 0.4 + generator.standard_normal(prompts)[:, None] + 0.7 * generator.standard_normal(annotators)
        points = (generator.random((prompts, annotators)) < expit(logits)).astype(float)
        _, votes = rated(points)
        rate = win_rate([1.0], [0.5], RESAMPLING)
        scores = points.mean(axis=1)
        half = 1.96 * scores.std(ddof=1) / prompts**0.5
        rate = rate._replace(
            value=float(scores.mean()), low=float(scores.mean() - half), high=float(scores.mean() + half)
        )
        found = over_annotators(rate, votes, 0.95)
        held += found.low <= truth <= found.high
        held_by_prompt += rate.low <= truth <= rate.high
    assert held / rounds > least
    assert held_by_prompt / rounds < 0.8
