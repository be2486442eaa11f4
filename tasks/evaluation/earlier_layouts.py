"""Evaluations that earlier releases wrote, read in today's layout: records of registered versions are never rewritten.

Their names are today's already (tasks/registry/promotion/earlier_releases.py); here only the nesting changes.
"""

from collections.abc import Mapping
from typing import Any

from tasks.evaluation.scores import HELD_OUT, TRAINING

GROUND_TRUTH = "ground_truth"
ONLY_RULE = "order_rule"  # that of the built-in example; no other reward could be a ground truth then
REWARDS = (TRAINING, HELD_OUT, GROUND_TRUTH)


def in_todays_layout(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Nest what an earlier release wrote as today's releases do; what is of today stays as it is."""
    found = dict(evaluation)
    if _is_flat(found.get(GROUND_TRUTH)):
        found[GROUND_TRUTH] = {ONLY_RULE: _win_rates_alone(found[GROUND_TRUTH])}
    if isinstance(found.get("difference"), Mapping):
        found["difference"] = {rival: _difference(each) for rival, each in found["difference"].items()}
    if "frontier" in found:
        found["over_optimisation"] = found.pop("frontier")
    for curve in ("best_of_sft", "over_optimisation"):
        if isinstance(found.get(curve), list):
            found[curve] = [_point(each) for each in found[curve]]
    return found


def _is_flat(ground_truth: object) -> bool:
    return isinstance(ground_truth, Mapping) and bool({"candidate", "vs_sft", "vs_opponent"} & set(ground_truth))


def _win_rates_alone(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out comparisons that are no win rates: the first releases had differences of the scores in their place."""
    return {name: value for name, value in ground_truth.items() if not isinstance(value, Mapping) or "wins" in value}


def _difference(difference: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(difference)
    if "value" in (found.get(GROUND_TRUTH) or {}):
        found[GROUND_TRUTH] = {ONLY_RULE: found[GROUND_TRUTH]}
    return found


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    if "scores" in point:
        return dict(point)
    plain = {name: value for name, value in point.items() if name not in REWARDS}
    scores = {name: point[name] for name in REWARDS if name in point}
    nested = {name: _named(plain[name]) for name in ("win_rate", "last_over_this") if plain.get(name)}
    return {**plain, "scores": _named(scores), **nested}


def _named(by_reward: Mapping[str, Any]) -> dict[str, Any]:
    return {ONLY_RULE if name == GROUND_TRUTH else name: value for name, value in by_reward.items()}
