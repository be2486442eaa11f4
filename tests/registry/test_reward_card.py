"""A reward model's card says what the record says of it, to the hub's own library too, and names no people."""

import copy
from typing import Any

import pytest
from huggingface_hub.repocard_data import model_index_to_eval_results

from tasks.learning.reward_model import calibration
from tasks.registry.export.reward_card import CONFIDENCE, reward_card
from tests.registry.test_policy_card import RECORD, SOURCE, interval, metadata

REWARD: dict[str, Any] = {
    "pairs": 4002,
    "steps": 252,
    "validation": {"loss": {"before": 0.951, "after": 0.43}},
    "accuracy": {**interval(0.85, 0.81, 0.88), "pairs": 482, "ties": 0},
    "margin": {"mean": 1.45, "std": 1.3},
    "calibration_error": 0.046,
    "length_correlation": -0.4,
    "accuracy_by_length": {
        "chosen_longer": {"value": 0.75, "pairs": 480},
        "same_length": {"value": None, "pairs": 0},
        "rejected_longer": {"value": 1.0, "pairs": 2},
    },
    "accuracy_by_source": {"a.jsonl": {**interval(0.9, 0.8, 0.95), "pairs": 100}},
    "accuracy_by_annotator": {"Ada Lovelace": {**interval(0.7, 0.6, 0.8), "pairs": 90}},
    "normalisation": {"bias": -0.207, "gain": 0.892},
}
SCORES = {"reward": interval(0.56, 0.53, 0.59), "held_out": interval(0.41, 0.37, 0.45)}
BEST_OF = [{"n": 2, "kl": 0.193, "scores": SCORES}]


def known(**changes):
    found = copy.deepcopy(RECORD)
    found["figures"]["reward"] = REWARD
    found["figures"]["evaluate"]["best_of_sft"] = BEST_OF
    found["params"] |= {"reward": {"epochs": 2, "learning_rate": 0.001}, "lora": {"rank": 0}}
    found["keys"] = {"sft": "1234", "reward": "2345", "align": "5678"}
    return {**found, **changes}


def test_an_ensemble_says_where_its_members_lie():
    record = known()
    assert "ensemble" not in write(record)
    record["figures"]["reward"] = REWARD | {"ensemble": {"disagreement": 0.2, "members": {"1": {}, "2": {}, "3": {}}}}
    record["params"]["reward"] |= {"ensemble": 3, "ensemble_penalty": 0.5}
    card = write(record)
    assert "This is an ensemble of 3 models: FOLDER holds the first, `FOLDER/member-2`" in card
    assert "the mean of theirs, less 0.5 times their standard deviation" in card


def write(record):
    return reward_card({"version": 4, "reward_version": 2, "md5": "aa.dir", "record": record})


def test_the_metadata_are_those_of_the_hub():
    data = metadata(write(known())).to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert (data["license"], data["tags"]) == ("apache-2.0", ["rlhf", "reward-model", "trueline"])
    [index] = data["model-index"]
    name, results = model_index_to_eval_results([index])
    assert name == "our-reward version 2"
    assert {each.metric_name: (each.metric_value, each.metric_args) for each in results} == {
        "Accuracy": (0.85, {"low": 0.81, "high": 0.88, "confidence": 0.95}),
        "Accuracy on pairs of a.jsonl": (0.9, {"low": 0.8, "high": 0.95, "confidence": 0.95}),
        "Accuracy where the preferred answer is longer": (0.75, None),
        "Accuracy where the preferred answer is shorter": (1.0, None),
        "Expected calibration error": (0.046, None),
        "Correlation of raw score and length": (-0.4, None),
        "Mean margin of the preferred answer, log-odds": (1.45, None),
    }
    assert {(each.dataset_name, each.dataset_type) for each in results} == {("482 pairs of the test split", SOURCE)}


def test_the_intervals_have_the_confidence_that_is_stated():
    assert CONFIDENCE == calibration.CONFIDENCE


@pytest.mark.parametrize(
    "text",
    [
        "# our-reward version 2",
        "record of policy version 4, with which this version was registered; `trueline why 4` shows",
        "| this reward model | `bb.dir` |",
        "| SFT model | `cc.dir` |",
        "| base model | `dd.dir` | `infra/example/orders.py` |",
        "| demonstrations | `infra/example/orders.py` | 120 | 103 | 7 | 80 | 12 | 11 |",
        "Trained on 4002 pairs in 252 steps",
        "Loss on the validation split: 0.951 before, 0.430 after.",
        "| `reward.learning_rate` | 0.001 |",
        "| `lora.rank` | 0 |",
        "| Accuracy | 0.850 | [0.810, 0.880] | 482 |",
        "| Accuracy on pairs of a.jsonl | 0.900 | [0.800, 0.950] | 100 |",
        "| Accuracy where the preferred answer is longer | 0.750 | — | 480 |",
        "| Correlation of raw score and length | -0.400 | — | 482 |",
        "nats | Training reward | Held-out reward model |\n|---|---|---|---|\n| 2 | 0.193 | 0.560 | 0.410 |",
        "disagrees with them on 0.150 of held-out pairs",  # 1 - 0.85
        "Its bias (-0.207) and gain (0.892) lie in config.json",
        "| git commit | 0123abcd, with uncommitted changes |",
        "| sha256 of requirements.lock | 4567 |",
        "| key of `reward` | `2345` |",
    ],
)
def test_the_text_shows_what_the_record_holds(text):
    assert text in write(known())


def test_it_tells_nothing_of_people_nor_of_the_policy():
    text = write(known())
    assert not any(name in text for name in ("Ada", "aa.dir", "`align`", "It got longer.", "equally long"))


def test_only_data_that_made_it_are_named():
    record = known(
        params={
            "prepare": {
                "demonstrations": {"source": SOURCE},
                "preferences": {"source": "pairs"},
                "prompts": {"source": "p.yaml"},
            }
        },
        hub={
            "pairs/a.yaml": {"hub": "org/pairs", "revision": "b" * 40},
            "p.yaml": {"hub": "org/asked", "revision": "c" * 40},
        },
    )
    record["data"]["prepare"]["preferences"] = {"rows_read": 9, "sources": {"pairs/a.yaml": {"rows": 9}}}
    read = metadata(write(record))
    assert (read.datasets, read.license) == (["org/pairs"], None)
    assert "org/asked" not in write(record)
    # Others' prompts are none of its terms.
    record["params"]["prepare"]["preferences"]["source"] = SOURCE
    record["data"]["prepare"]["preferences"] = record["data"]["prepare"]["demonstrations"]
    assert metadata(write(record)).license == "apache-2.0"


def test_pairs_that_share_prompts_are_shown_with_what_they_tell():
    record = known()
    assert "In brackets: Wilson's interval, confidence 0.95.\n" in write(record)
    record["figures"]["reward"]["accuracy"]["effective_pairs"] = 244.3
    assert "confidence 0.95, of the 244 pairs that would tell as much if no two shared a prompt." in write(record)


def test_a_record_of_an_earlier_release_still_gets_a_card():
    record = known(params={})
    del record["figures"], record["hub"]
    text = write(record)
    assert "The record holds no figures of the reward model." in text
    assert "Trained on not recorded pairs" in text
    assert "model-index" not in metadata(text).to_dict()


def test_figures_of_an_earlier_release_are_shown_as_far_as_they_go():
    record = known()
    record["figures"] = {"reward": {"accuracy": {"value": 0.85, "pairs": 482}}}
    record["figures"]["evaluate"] = {"best_of_sft": [{"n": 2, "kl": 0.193, "scores": {"reward": 0.5}}]}
    text = write(record)
    assert "| Accuracy | 0.850 | — | 482 |" in text
    assert "| Expected calibration error | — | — | 482 |" in text
    assert "| 2 | 0.193 | — |" in text
    assert "correlate" not in text


def test_the_same_record_gives_the_same_bytes():
    assert write(known()) == write(known())
