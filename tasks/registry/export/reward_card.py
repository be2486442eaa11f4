"""A reward model version's card, from the model record of the policy version it was registered with."""

from collections.abc import Mapping
from typing import Any

from tasks.data.records import Kind
from tasks.evaluation.figures import reward_title
from tasks.registry.export.card import IndexEntry, Subject, figures_of, write_card
from tasks.registry.promotion.decisions import PolicyVersion
from tasks.settings.fingerprint import flatten

KINDS: tuple[Kind, ...] = ("demonstrations", "preferences")
STAGES = ("prepare", "validate", "base", "sft", "reward")  # the stages that made it
# Of the intervals in metrics/reward.json, as set in tasks/learning/reward_model/calibration.py.
CONFIDENCE = 0.95
# Accuracy on parts of the pairs: key in `accuracy_by_length` of metrics/reward.json, name.
LENGTHS = (
    ("chosen_longer", "Accuracy where the preferred answer is longer"),
    ("same_length", "Accuracy where both are equally long"),
    ("rejected_longer", "Accuracy where the preferred answer is shorter"),
)
# Other figures of all pairs: path in metrics/reward.json, type on the hub, name.
FIGURES = (
    ("calibration_error", "expected_calibration_error", "Expected calibration error"),
    ("length_correlation", "length_correlation", "Correlation of raw score and length"),
    ("margin.mean", "margin", "Mean margin of the preferred answer, log-odds"),
)


def reward_card(policy: PolicyVersion) -> str:
    """Write the card of the reward model version that a policy version was registered with.

    Annotators are not named, even if the record names them: cards are published.

    Args:
        policy: the policy version with its model record.

    Returns:
        Markdown with the metadata as YAML in front.
    """
    record = policy["record"]
    reward, evaluation = figures_of(record, "reward"), figures_of(record, "evaluate")
    accuracies, others, best_of = _accuracies(reward), flatten(reward), evaluation.get("best_of_sft") or []
    subject = Subject(
        name=record["reward"]["name"],
        version=policy["reward_version"],
        template="reward_card.md.j2",
        task="text-classification",
        library="transformers",
        tags=["rlhf", "reward-model", "trueline"],
        kinds=KINDS,
        tested_on=f"{reward.get('accuracy', {}).get('pairs')} pairs of the test split",
    )
    index = [IndexEntry("accuracy", name, each["value"], _interval(each)) for name, each in accuracies.items()]
    index += [IndexEntry(kind, name, others[path]) for path, kind, name in FIGURES if others.get(path) is not None]
    return write_card(
        subject,
        record,
        index,
        policy_version=policy["version"],
        reward=reward,
        accuracy=reward.get("accuracy", {}),
        accuracies=accuracies,
        others={name: others.get(path) for path, _, name in FIGURES},
        confidence=CONFIDENCE,
        settings=flatten({name: record["params"].get(name, {}) for name in ("reward", "lora")}),
        best_of=best_of,
        best_of_rewards={name: reward_title(name) for name in (best_of[0]["scores"] if best_of else ())},
        prompts=evaluation.get("prompts"),
        stages=STAGES,
    )


def _accuracies(reward: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the accuracy in all, by source and by length, under the name of each; only where there were pairs."""
    by_source, by_length = reward.get("accuracy_by_source", {}), reward.get("accuracy_by_length", {})
    found = {
        "Accuracy": reward.get("accuracy", {}),
        **{f"Accuracy on pairs of {source}": each for source, each in by_source.items()},
        **{name: by_length.get(key, {}) for key, name in LENGTHS},
    }
    return {name: each for name, each in found.items() if each.get("value") is not None}


def _interval(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """Return the interval; some earlier figures, and those by length, have none."""
    ends = {end: accuracy[end] for end in ("low", "high") if end in accuracy}
    return {**ends, "confidence": CONFIDENCE} if ends else {}
