"""The layout of metrics/reward.json and metrics/held_out_reward.json, as far as gate and reward_check read them."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from tasks.common.files import METRICS, read_json
from tasks.common.record import Number, Record, Text, parsed
from tasks.evaluation.schema import IntervalFigure

REWARD, HELD_OUT_REWARD = METRICS / "reward.json", METRICS / "held_out_reward.json"

BaselineName = Literal["longer_wins", "tf_idf"]
BASELINES: dict[BaselineName, str] = {
    "longer_wins": "the longer answer wins",
    "tf_idf": "TF-IDF with logistic regression",
}


class Accuracy(Record):
    """Share of pairs that a reward model orders as people did."""

    value: Number
    pairs: int


class AccuracyInterval(Accuracy):
    """The same with its interval."""

    low: Number
    high: Number
    effective_pairs: Number = None  # not set: no two pairs share a prompt
    ties: int = 0


class Margins(Record):
    """Score of the chosen answer minus score of the rejected one."""

    mean: float
    std: float
    largest: float
    histogram: list[int]


class Baseline(Record):
    """What needs no model, on the same pairs."""

    accuracy: AccuracyInterval
    difference: IntervalFigure  # accuracy of the reward model minus this one; paired, prompts drawn whole


class RewardModelFigures(Record):
    """metrics/reward.json and metrics/held_out_reward.json: what the gate reads of them."""

    model_config = ConfigDict(extra="ignore")  # the figures of the training are not the gate's

    steps: int
    accuracy: AccuracyInterval
    margin: Margins
    calibration_error: Number
    length_correlation: Number
    accuracy_by_length: dict[str, Accuracy]
    accuracy_by_confidence: dict[str, Accuracy]
    accuracy_by_source: dict[Text, AccuracyInterval]
    accuracy_by_annotator: dict[Text, AccuracyInterval]
    baselines: dict[BaselineName, Baseline]


def read_reward_model(path: Path) -> RewardModelFigures | None:
    """Read the figures of a reward model; None where the stage has trained none.

    Raises:
        InputError: the file is missing or damaged, or has not the layout that this version of the code writes.
    """
    content = read_json(path)
    return None if content.get("trained") is False else parsed(content, RewardModelFigures, path)
