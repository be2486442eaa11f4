"""Candidates whose true gain is known, before the gate with its shipped thresholds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.evaluation.compare import Resampling
from tasks.evaluation.gate.checks import decide
from tasks.evaluation.measured import measure
from tasks.evaluation.metrics import Answers
from tasks.evaluation.scores import Scores
from tasks.evaluation.summary import summarise
from tasks.settings.params import load_params
from tests.evaluation.evaluations import SFT, checks
from tests.evaluation.test_over_optimisation import along
from tests.evaluation.test_summary import make_prompts

pytestmark = pytest.mark.slow

THRESHOLDS = load_params(Path(__file__).parents[2] / "params.yaml").gate
PROMPTS = make_prompts(300, references=False)
TRIES = 100


def decided(
    gain,
    seed,
    longer=0.0,
    reward_of_length=0.0,
    held_out_gain=None,
    ground_truth_gain=None,
    held_out_curve=(0.0, 0.0),
    resamples=200,
):
    """Have the gate decide on a candidate whose rewards are higher by `gain`, in deviations of one answer's reward.

    Its answers are `longer` by so many tokens on average; the training reward adds `reward_of_length` for each. The
    held-out reward model, which is noisier, sees a gain of its own, and its mean score along training is that of
    `held_out_curve`. A ground-truth reward sees another, where there is one.
    """
    generator = np.random.default_rng(seed)

    def sampled(more, reward):
        lengths = generator.normal(50 + more, 15, len(PROMPTS)).clip(5)
        rewards = generator.normal(reward, 1, len(PROMPTS)) + reward_of_length * (lengths - 50)
        return Answers(["well written"] * len(PROMPTS), lengths.tolist(), [True] * len(PROMPTS)), rewards.tolist()

    def measured(replies, seen):
        answers, rewards = replies
        held_out = [seen + reward + noise for reward, noise in zip(rewards, generator.normal(size=300), strict=True)]
        return measure(PROMPTS, answers, Scores(rewards, {"reward_model": rewards}, held_out, {}))

    candidate = measured(sampled(longer, gain), 0.0 if held_out_gain is None else held_out_gain - gain)
    sft = measured(sampled(0.0, 0.0), 0.0)
    if ground_truth_gain is not None:
        candidate, sft = (
            model._replace(
                scores=model.scores._replace(ground_truth={"rule": generator.normal(height, 1, len(PROMPTS)).tolist()})
            )
            for model, height in ((candidate, ground_truth_gain), (sft, 0.0))
        )
    models = {"candidate": candidate, "sft": sft, "opponent": sft}
    evaluation = summarise(
        PROMPTS,
        models,
        [1.0] * len(PROMPTS),
        opponent=SFT,
        perplexity={"candidate": 2.0, "sft": 2.0},
        best_of_sft=[],
        points=along(seed, np.linspace(0, gain, len(held_out_curve)), held_out_curve),
        resampling=Resampling(resamples, 0.95, seed),
    )
    found = checks(evaluation, thresholds=THRESHOLDS)
    return decide(list(found.values())), {name: check.verdict for name, check in found.items()}


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
    verdicts = [decided(0.0, seed, longer=15, reward_of_length=0.05) for seed in range(20)]
    assert {found["win_rate"] for _, found in verdicts} == {"passed"}  # the training reward prefers length
    assert sum(decision == "promote" for decision, _ in verdicts) <= 1
    assert decided(0.0, 1, longer=40, reward_of_length=0.05)[0] == "reject"


def test_a_policy_that_hacks_the_training_reward_is_rejected():
    verdicts = [decided(0.6, seed, held_out_gain=-1.0) for seed in range(20)]
    assert {found["win_rate"] for _, found in verdicts} == {"passed"}
    assert {decision for decision, _ in verdicts} == {"reject"}


def test_a_policy_that_hacks_both_reward_models_is_rejected_by_the_ground_truth():
    # Half a deviation lower by the rule, it wins 36 % of prompts there; the held-out
    # reward model sees neither gain nor loss.
    verdicts = [decided(0.6, seed, held_out_gain=0.0, ground_truth_gain=-0.5) for seed in range(20)]
    assert sum(found["held_out_reward"] == "passed" for _, found in verdicts) >= 19
    assert {found["ground_truth.rule"] for _, found in verdicts} == {"failed"}
    assert {decision for decision, _ in verdicts} == {"reject"}


def test_a_true_gain_by_the_ground_truth_is_promoted():
    assert {decided(0.6, seed, ground_truth_gain=0.5)[0] for seed in range(20)} == {"promote"}


def test_an_over_optimised_policy_is_rejected_by_its_evaluation_points():
    # Compared with SFT the held-out reward has not changed; halfway it was much higher.
    curve = [0.0, 0.25, 0.5, 0.75, 0.9, 0.75, 0.5, 0.25, 0.0]
    verdicts = [decided(0.9, seed, held_out_gain=0.0, held_out_curve=curve) for seed in range(20)]
    assert sum(found["held_out_reward"] == "passed" for _, found in verdicts) >= 19
    assert sum(found["over_optimisation"] == "failed" for _, found in verdicts) >= 18


def test_a_loss_is_rejected():
    assert Counter(decided(-0.4, seed)[0] for seed in range(20))["reject"] >= 19
