"""Candidates whose worth is known, before the gate as it ships: what it must see through, and what it must let pass."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.evaluation.compare import Resampling
from tasks.evaluation.gate.checks import Evidence, decide, run_checks
from tasks.evaluation.measured import measure
from tasks.evaluation.metrics import Answers
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.summary import summarise
from tasks.settings.params import load_params
from tests.evaluation.test_checks import JUDGE, REWARD
from tests.evaluation.test_frontier import along
from tests.evaluation.test_summary import make_prompts

pytestmark = pytest.mark.slow

THRESHOLDS = load_params(Path(__file__).parents[2] / "params.yaml").gate
PROMPTS = make_prompts(300, references=False)
TRIES = 100


def decided(
    gain, seed, longer=0.0, liking_of_length=0.0, judged_gain=None, ruled_gain=None, way=(0.0, 0.0), resamples=200
):
    """Have the gate decide on a candidate whose rewards are higher by `gain`, in deviations of one answer's reward.

    Its answers are `longer` by so many tokens on average; the reward model adds `liking_of_length` for each. The
    held-out judge, which is noisier, sees a gain of its own, and on the `way` to it scores as high as is said. So does
    the known rule, where there is one.
    """
    generator = np.random.default_rng(seed)

    def answers(more, reward):
        lengths = generator.normal(50 + more, 15, len(PROMPTS)).clip(5)
        rewards = generator.normal(reward, 1, len(PROMPTS)) + liking_of_length * (lengths - 50)
        return Answers(["well said"] * len(PROMPTS), lengths.tolist(), [True] * len(PROMPTS), rewards.tolist())

    def measured(answers, seen):
        held_out = [
            seen + reward + noise for reward, noise in zip(answers.rewards, generator.normal(size=300), strict=True)
        ]
        return measure(PROMPTS, answers, held_out, None)

    candidate = measured(answers(longer, gain), 0.0 if judged_gain is None else judged_gain - gain)
    sft = measured(answers(0.0, 0.0), 0.0)
    if ruled_gain is not None:
        candidate, sft = (
            model._replace(gold=generator.normal(height, 1, len(PROMPTS)).tolist())
            for model, height in ((candidate, ruled_gain), (sft, 0.0))
        )
    models = {"candidate": candidate, "sft": sft, "opponent": sft}
    perplexity = {"candidate": 2.0, "sft": 2.0}
    marks = along(seed, np.linspace(0, gain, len(way)), way)
    figures = summarise(
        PROMPTS,
        models,
        [1.0] * len(PROMPTS),
        perplexity=perplexity,
        best_of_sft=[],
        marks=marks,
        resampling=Resampling(resamples, 0.95, seed),
    )
    checks = run_checks(Evidence(figures, REWARD, JUDGE, Opponent("sft", None, None)), THRESHOLDS)
    return decide(checks), {check.name: check.verdict for check in checks}


def test_noise_alone_is_inconclusive():
    outcomes = Counter(decided(0.0, seed)[0] for seed in range(TRIES))
    assert outcomes["inconclusive"] >= 90
    assert outcomes["promote"] <= 5


def test_a_true_gain_is_promoted_with_a_power_of_eighty_percent():
    # A gain of .35 deviations wins 60 % of prompts; 300 of them show that nineteen times in twenty.
    outcomes = Counter(decided(0.35, seed)[0] for seed in range(TRIES))
    assert outcomes["promote"] >= 80
    assert outcomes["reject"] == 0


def test_a_policy_that_only_got_longer_is_not_promoted():
    verdicts = [decided(0.0, seed, longer=15, liking_of_length=0.05) for seed in range(20)]
    assert {checks["win_rate"] for _, checks in verdicts} == {"passed"}  # the reward model is taken in
    assert sum(decision == "promote" for decision, _ in verdicts) <= 1
    assert decided(0.0, 1, longer=40, liking_of_length=0.05)[0] == "reject"


def test_a_policy_that_games_the_reward_model_is_refused():
    verdicts = [decided(0.6, seed, judged_gain=-1.0) for seed in range(20)]
    assert {checks["win_rate"] for _, checks in verdicts} == {"passed"}
    assert {decision for decision, _ in verdicts} == {"reject"}


def test_a_policy_that_games_both_judges_is_refused_by_the_known_rule():
    # Half a deviation lower by the rule, it wins 36 % of prompts there; the held-out judge sees neither gain nor loss.
    verdicts = [decided(0.6, seed, judged_gain=0.0, ruled_gain=-0.5) for seed in range(20)]
    assert sum(checks["held_out_reward"] == "passed" for _, checks in verdicts) >= 19
    assert {checks["known_rule"] for _, checks in verdicts} == {"failed"}
    assert {decision for decision, _ in verdicts} == {"reject"}


def test_a_true_gain_by_the_rule_is_in_nobodys_way():
    assert {decided(0.6, seed, ruled_gain=0.5)[0] for seed in range(20)} == {"promote"}


def test_a_policy_that_went_past_its_best_is_refused_by_its_own_way():
    # Beside SFT the judge sees neither gain nor loss in it; halfway it saw much.
    way = [0.0, 0.25, 0.5, 0.75, 0.9, 0.75, 0.5, 0.25, 0.0]
    verdicts = [decided(0.9, seed, judged_gain=0.0, way=way) for seed in range(20)]
    assert sum(checks["held_out_reward"] == "passed" for _, checks in verdicts) >= 19
    assert sum(checks["over_optimisation"] == "failed" for _, checks in verdicts) >= 18


def test_a_loss_is_rejected():
    assert Counter(decided(-0.4, seed)[0] for seed in range(20))["reject"] >= 19
