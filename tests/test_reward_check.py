"""The reward model's figures before PPO: tests/test_reward_perturbations.py is about what rewards say of answers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import VALIDATED
from tasks.data.records import write_records
from tasks.reward_check import PASSED, reward_check
from tests.conftest import MakeParams
from tests.evaluation.evaluations import baseline, reward_model

SOUND = reward_model(0.8, 0.7, 0.9)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    write_records(VALIDATED, "prompts", [])


def checked(
    make_params: MakeParams,
    figures: dict[str, Any],
    method: str = "ppo",
    threshold: float = 0.6,
    beats_baselines: bool = False,
) -> bytes:
    Path("metrics/reward.json").write_text(json.dumps(figures))
    gate = {"min_reward_accuracy": threshold, "reward_beats_baselines": beats_baselines}
    reward_check(make_params(align={"method": method}, gate=gate))
    return PASSED.read_bytes()


def test_a_sound_reward_model_passes_and_its_threshold_leaves_no_trace(make_params: MakeParams):
    assert checked(make_params, SOUND, threshold=0.6) == checked(make_params, SOUND, threshold=0.7)


def test_below_the_threshold_the_pipeline_stops_with_the_figures(make_params: MakeParams):
    with pytest.raises(InputError) as caught:
        checked(make_params, SOUND, threshold=0.71)
    assert str(caught.value).startswith(
        "PPO would learn from a reward model that fails its check: "
        "held-out accuracy 0.800 [0.700, 0.900] on 120 pairs, calibration error 0.050, "
        "correlation with length —; "
        "the lower bound of the accuracy must reach 0.71 "
        "(gate.min_reward_accuracy): "
    )
    assert not Path("metrics/reward_check.json").exists()
    assert not PASSED.exists()


COUNTS_WORDS = reward_model(
    0.8, 0.7, 0.9, baselines={"longer_wins": baseline(0.5, 0.1), "tf_idf": baseline(0.79, -0.05)}
)
SENTENCE = (
    "The reward model is not significantly better than a baseline without a model (TF-IDF with logistic regression) on "
    "the same held-out pairs: accuracy 0.800 and 0.790, difference 0.050 [-0.050, 0.150]"
)


def test_a_model_that_is_no_better_than_counting_words_is_warned_of(make_params: MakeParams, caplog):
    passed = checked(make_params, COUNTS_WORDS)
    assert caplog.messages[0] == f"{SENTENCE}."
    assert passed == checked(make_params, SOUND)
    caplog.clear()
    checked(make_params, COUNTS_WORDS, method="dpo")
    assert caplog.messages == []  # dpo does not learn from it


def test_it_is_refused_where_it_must_be_better(make_params: MakeParams):
    with pytest.raises(InputError, match=re.escape(SENTENCE + ": give more or other pairs")):
        checked(make_params, COUNTS_WORDS, beats_baselines=True)
    checked(make_params, SOUND, beats_baselines=True)


def test_pairs_that_share_prompts_are_distinguished_from_so_many_prompts(make_params: MakeParams):
    shared = reward_model(accuracy=SOUND["accuracy"] | {"effective_pairs": 60.4})
    with pytest.raises(
        InputError, match=r"\[0\.700, 0\.900\] on 120 pairs; the 120 pairs share prompts and count as 60 indep"
    ):
        checked(make_params, shared, threshold=0.71)


def test_the_source_that_the_model_surely_knows_less_is_named(make_params: MakeParams):
    sources = {
        "data/a.jsonl": {"value": 0.9, "low": 0.85, "high": 0.95, "pairs": 60},
        "data/b.jsonl": {"value": 0.55, "low": 0.4, "high": 0.69, "pairs": 40},
        "data/c.jsonl": {"value": 0.5, "low": 0.3, "high": 0.68, "pairs": 15},  # the lowest upper bound below 0.7
        "data/d.jsonl": {"value": 0.4, "low": 0.1, "high": 0.7, "pairs": 5},  # its interval touches that of all pairs
    }
    with pytest.raises(InputError) as caught:
        checked(make_params, SOUND | {"accuracy_by_source": sources}, threshold=0.71)
    assert (
        "accuracy 0.800 [0.700, 0.900] on 120 pairs "
        "(weakest source: data/c.jsonl, 0.500 [0.300, 0.680] on 15 pairs), calibration error" in str(caught.value)
    )


def test_one_source_is_not_named(make_params: MakeParams):
    with pytest.raises(InputError) as caught:
        checked(make_params, SOUND | {"accuracy_by_source": {"data/a.jsonl": SOUND["accuracy"]}}, threshold=0.71)
    assert "source" not in str(caught.value)


def test_an_accuracy_that_could_not_be_computed_does_not_pass(make_params: MakeParams):
    with pytest.raises(InputError, match=r"held-out accuracy 0\.800 \[—, 0\.900\] on 120 pairs"):
        checked(make_params, reward_model(0.8, None, 0.9))


def test_without_a_reward_model_the_functions_are_named(make_params: MakeParams):
    length = {"name": "brevity", "source": "infra/example/rewards.py:score", "weight": 1.0}
    Path("metrics/reward.json").write_text('{"trained": false}')
    reward_check(make_params(align={"method": "ppo"}, rewards={"training": [length]}))
    assert json.loads(PASSED.read_text()) == {"learned_from": False, "functions": ["brevity"]}


def test_dpo_does_not_learn_from_the_reward_model(make_params: MakeParams):
    assert json.loads(checked(make_params, SOUND, method="dpo", threshold=0.71)) == {
        "learned_from": False,
        "functions": [],
    }
