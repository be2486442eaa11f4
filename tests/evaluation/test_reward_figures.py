"""What the trainer of the reward models writes is what the gate reads."""

from pathlib import Path

import numpy as np

from tasks.common.record import parsed
from tasks.evaluation.reward_figures import RewardModelFigures
from tasks.learning.reward_model.baselines import Texts, baselines
from tasks.learning.reward_model.calibration import ScoredPair, accuracy_by, reward_metrics


def test_the_figures_of_a_reward_model_have_the_layout_that_the_gate_reads():
    generator = np.random.default_rng(1)
    pairs = [
        ScoredPair(chosen, rejected, 3 + number % 7, 3 + number % 5, f"{number // 2}")
        for number, (chosen, rejected) in enumerate(generator.normal(size=(40, 2)).tolist())
    ]
    origins = {
        "accuracy_by_source": accuracy_by({"a.jsonl": pairs[:30], "b.jsonl": pairs[30:]}),
        "accuracy_by_annotator": accuracy_by({}),
    }
    texts = [Texts(f"yes {number}", "no") for number in range(40)]
    compared = baselines(pairs, texts, texts, seed=1)
    written = {"pairs": 300, "steps": 5, "loss": 0.5, **reward_metrics(pairs), **origins, "baselines": compared}
    read = parsed(written, RewardModelFigures, Path("metrics/reward.json"))
    assert read.accuracy.model_dump(exclude_unset=True) == written["accuracy"]
    assert set(read.accuracy_by_source) == {"a.jsonl", "b.jsonl"}
    assert read.as_json()["baselines"] == compared
    assert read.margin.histogram == written["margin"]["histogram"]
