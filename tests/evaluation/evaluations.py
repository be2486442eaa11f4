"""A complete evaluation of a promotable candidate, and ways to change it."""

import copy
from typing import Any

from tasks.common.record import parsed
from tasks.evaluation.gate.check import Check, Evidence
from tasks.evaluation.gate.checks import decide, run_checks
from tasks.evaluation.gate.result import GateDecision
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.reward_figures import REWARD, RewardModelFigures
from tasks.evaluation.schema import EVALUATION, Evaluation
from tasks.settings.params import Gate

SFT = Opponent("sft", None, None)
THRESHOLDS = Gate(
    min_win_rate=0.5,
    min_held_out_win_rate=0.5,
    max_over_optimised_points=0,
    max_category_regressions=0,
    max_kl=10.0,
    min_reward_accuracy=0.6,
    min_held_out_accuracy=0.5,
    reward_beats_baselines=False,
    min_length_ratio=0.5,
    max_length_ratio=1.5,
    min_eos_rate=0.9,
    max_repetition=0.2,
    max_refusals_gained=0.05,
    max_perplexity_ratio=2.0,
)


def interval(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def rate(value: float = 0.5, low: float = 0.4, high: float = 0.6, **more: Any) -> dict[str, Any]:
    counts = {"ties": 0.2, "wins": 48, "losses": 48, "sign_test": 0.25, "conclusion": "inconclusive"}
    return interval(value, low, high) | counts | {"prompts_needed": None} | more


def model(**changes: Any) -> dict[str, Any]:
    texts = {"reward": 0.5, "length": 10.0, "eos_rate": 0.95, "distinct_1": 0.25, "distinct_2": 0.5}
    likeness = {"bleu": 20.0, "chrf": 30.0, "rouge_1": 0.5, "rouge_2": 0.25, "rouge_l": 0.375, "meteor": 0.4}
    return texts | {"repetition": 0.01, "refusals": 0.01} | likeness | changes


def by_reward(**changes: Any) -> dict[str, Any]:
    return {"candidate": 0.75, "sft": 0.25, "opponent": 0.5, "vs_sft": rate(), "vs_opponent": rate()} | changes


def difference(**changes: Any) -> dict[str, Any]:
    plain = {name: interval(0.0, -0.1, 0.1) for name in ("reward", "held_out", "length", "eos_rate", "repetition")}
    return plain | {"rouge_l": interval(0.0, -0.1, 0.1), "ground_truth": {}} | changes


def point(step: int, kl: float, won: dict[str, Any], last_over_this: dict[str, Any] | None) -> dict[str, Any]:
    shown = dict.fromkeys(("reward", "held_out"), won)
    return {
        "step": step,
        "kl": {"mean": kl, "standard_error": 0.1},
        "scores": shown,
        "win_rate": shown,
        "last_over_this": last_over_this,
    }


def category(prompts: int = 30, enough: bool = True, **changes: Any) -> dict[str, Any]:
    over_opponent = by_reward(**changes)
    del over_opponent["vs_sft"]
    return {
        "prompts": prompts,
        "enough_prompts": enough,
        "candidate": model(reward=1.5),
        "sft": model(),
        "opponent": model(reward=1.0),
        "win_rate": {"vs_opponent": over_opponent["vs_opponent"]},
        "training": {"reward_model": over_opponent},
        "held_out": over_opponent,
        "ground_truth": {},
        "references": {"vs_opponent": rate()},
        "difference": {"vs_opponent": {"reward": interval(0.5, 0.25, 0.75)}},
    }


EVEN, WON = interval(0.5, 0.5, 0.5), interval(0.6, 0.56, 0.64)
BETTER = rate(0.7, 0.6, 0.8, conclusion="better")
GOOD: dict[str, Any] = {
    "prompts": 120,
    "with_references": 100,
    "candidate": model(reward=1.5, length=12.0, refusals=0.02),
    "sft": model(reward=0.25),
    "opponent": model(name="sft", version=None),
    "win_rate": {"vs_sft": rate(0.75, 0.7, 0.8, ties=0.1, sign_test=0.001, conclusion="better"), "vs_opponent": BETTER},
    "training": {"reward_model": by_reward(vs_opponent=BETTER)},
    "held_out": by_reward(vs_opponent=rate(0.55, 0.45, 0.65)),
    "ground_truth": {},
    "references": None,
    "length_controlled_win_rate": {"vs_sft": interval(0.7, 0.6, 0.8), "vs_opponent": interval(0.65, 0.55, 0.75)},
    "difference": {"vs_sft": difference(), "vs_opponent": difference(reward=interval(1.0, 0.75, 1.25))},
    "kl": {"mean": 4.0, "standard_error": 0.2},
    "perplexity": {"candidate": 3.0, "sft": 2.0},
    "best_of_sft": [
        {
            "n": 2,
            "kl": 0.193,
            "scores": {"reward": WON, "held_out": EVEN},
            "win_rate": {"reward": WON, "held_out": EVEN},
        }
    ],
    "over_optimisation": [
        point(0, 0.0, EVEN, {"reward": rate(conclusion="better"), "held_out": rate()}),
        point(40, 1.5, WON, {"reward": rate(), "held_out": rate(0.4, conclusion="worse")}),
        point(80, 3.0, WON, None),
    ],
    "categories": {"law": category(), "tax": category(prompts=3, enough=False)},
    "confidence": 0.95,
    "methods": {"bleu": None, "chrf": None, "rouge": "F1", "meteor": "exact+stem"},
}


def baseline(accuracy: float, low: float) -> dict[str, Any]:
    interval = {"value": accuracy, "pairs": 120, "low": accuracy - 0.1, "high": accuracy + 0.1}
    return {"accuracy": interval, "difference": {"value": low + 0.1, "low": low, "high": low + 0.2}}


def reward_model(value: float = 0.75, low: float | None = 0.7, high: float = 0.8, **changes: Any) -> dict[str, Any]:
    accuracy = {"value": value, "pairs": 120, "low": low, "high": high, "ties": 0}
    return {
        "steps": 10,
        "accuracy": accuracy,
        "margin": {"mean": 0.5, "std": 1.0, "largest": 0.0, "histogram": []},
        "calibration_error": 0.05,
        "length_correlation": None,
        "accuracy_by_length": {f"{each}_longer": {"value": 0.7, "pairs": 60} for each in ("chosen", "rejected")},
        "accuracy_by_confidence": {},
        "accuracy_by_source": {},
        "accuracy_by_annotator": {},
        "baselines": {"longer_wins": baseline(0.5, 0.1), "tf_idf": baseline(0.6, 0.02)},
    } | changes


# As where nothing learns from rewards.
NO_REWARD_CHECK: dict[str, Any] = {
    "learned_from": False,
    "functions": [],
    "prompts": 0,
    "without_references": 0,
    "weighted_sum": None,
    "rewards": {},
}
REWARD_MODEL, HELD_OUT_MODEL = reward_model(), reward_model(0.65, 0.6, 0.7)


def changed(content: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """A copy of nested content with another value at a place."""
    found = copy.deepcopy(content)
    inner: Any = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return found


def evaluation(content: dict[str, Any] = GOOD) -> Evaluation:
    return parsed(content, Evaluation, EVALUATION)


def figures(content: dict[str, Any] | None) -> RewardModelFigures | None:
    return None if content is None else parsed(content, RewardModelFigures, REWARD)


def evidence(
    content: dict[str, Any] | Evaluation = GOOD,
    reward: dict[str, Any] | None = REWARD_MODEL,
    held_out: dict[str, Any] | None = HELD_OUT_MODEL,
    opponent: Opponent = SFT,
) -> Evidence:
    found = content if isinstance(content, Evaluation) else evaluation(content)
    return Evidence(found, figures(reward), figures(held_out), opponent)


def checks(*arguments: Any, thresholds: Gate = THRESHOLDS, **more: Any) -> dict[str, Check]:
    """The checks of an evaluation, by name."""
    return {check.name: check for check in run_checks(evidence(*arguments, **more), thresholds)}


def decision(*arguments: Any, **more: Any) -> GateDecision:
    return decide(list(checks(*arguments, **more).values()))


def allowing(**thresholds: Any) -> Gate:
    return THRESHOLDS.model_copy(update=thresholds)
