"""A policy version's model card, written from its model record alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.common.rounding import digits_of
from tasks.data.records import Kind
from tasks.methods import METHODS
from tasks.registry.export.card import Figure, Subject, figures_of, write_card
from tasks.registry.promotion.decisions import PolicyVersion

KINDS: tuple[Kind, ...] = ("demonstrations", "preferences", "prompts")
MODELS = ("candidate", "sft", "opponent")
# Figures of each model on the test prompts: key in metrics/evaluate.json, type on the hub, name.
MODEL_FIGURES = (
    ("reward", "reward", "Reward"),
    ("held_out", "held_out_score", "Held-out reward"),
    ("ground_truth", "ground_truth_score", "Ground-truth reward"),
    ("length", "length", "Length, tokens"),
    ("eos_rate", "eos_rate", "Ended by itself"),
    ("repetition", "repetition", "Repeated 4-grams"),
    ("distinct_1", "distinct_1", "Distinct-1"),
    ("distinct_2", "distinct_2", "Distinct-2"),
    ("refusals", "refusals", "Begins as a refusal"),
    ("bleu", "bleu", "BLEU"),
    ("chrf", "chrf", "chrF"),
    ("rouge_1", "rouge", "ROUGE-1"),
    ("rouge_2", "rouge", "ROUGE-2"),
    ("rouge_l", "rouge", "ROUGE-L"),
    ("meteor", "meteor", "METEOR"),
    ("perplexity", "perplexity", "Perplexity of the demonstrated answers"),
)
# Differences by prompt from another model: key in metrics/evaluate.json, type on the hub, name.
DIFFERENCES = (
    ("reward", "reward_difference", "Reward minus that of"),
    ("held_out", "held_out_difference", "Held-out reward minus that of"),
    ("ground_truth", "ground_truth_difference", "Ground-truth reward minus that of"),
    ("length", "length_difference", "Length in tokens minus that of"),
    ("eos_rate", "eos_rate_difference", "Share ended by itself minus that of"),
    ("repetition", "repetition_difference", "Repeated 4-grams minus those of"),
    ("rouge_l", "rouge_l_difference", "ROUGE-L minus that of"),
)
# Other sources of win rates than the reward model: key in metrics/evaluate.json, name.
OTHER_SOURCES = (
    ("held_out", "the held-out reward model"),
    ("references", "the references"),
    ("ground_truth", "the ground-truth reward"),
)


class Comparison(NamedTuple):
    """A comparison of the policy with another model, with the evaluation's interval."""

    kind: str  # metric type on the hub
    name: str
    value: float
    low: float
    high: float

    @property
    def digits(self) -> int:
        """Return the number of digits to show."""
        return digits_of(self.kind.removesuffix("_difference"))


def policy_card(policy: PolicyVersion, *, as_adapter: bool = False) -> str:
    """Write the card of a policy version.

    Args:
        policy: the version with its model record.
        as_adapter: whether the card is for an adapter on the SFT model, and not for the full weights.

    Returns:
        Markdown with the metadata as YAML in front.
    """
    record = policy["record"]
    evaluation, method = figures_of(record, "evaluate"), record["method"]
    subject = Subject(
        name=record["policy"]["name"],
        version=policy["version"],
        template="policy_card.md.j2",
        task="text-generation",
        library="peft" if as_adapter else "transformers",
        tags=["rlhf", method, "trueline", *(["lora"] if as_adapter else [])],
        kinds=KINDS,
        tested_on=f"{evaluation.get('prompts')} prompts of the test split",
    )
    return write_card(
        subject,
        record,
        _index(record),
        reward_version=policy["reward_version"],
        as_adapter=as_adapter,
        method=METHODS[method],
        evaluation=evaluation,
        comparisons=_comparisons(record),
        model_figures=[
            (name, digits_of(key), *(_model_figure(evaluation, key, model) for model in MODELS))
            for key, _, name in MODEL_FIGURES
        ],
        accuracy=figures_of(record, "reward").get("accuracy", {}),
    )


def _index(record: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of the whole test split for the hub's model index, with intervals as arguments."""
    evaluation = figures_of(record, "evaluate")
    confidence, kl = evaluation.get("confidence"), evaluation.get("kl")
    figures = [
        Figure(each.kind, each.name, each.value, {"low": each.low, "high": each.high, "confidence": confidence})
        for each in _comparisons(record)
    ]
    if kl and kl.get("mean") is not None:
        name = "KL(policy || SFT), nats an answer"
        figures.append(Figure("kl", name, kl["mean"], {"standard_error": kl.get("standard_error")}))
    named = [(kind, name, _model_figure(evaluation, key, "candidate")) for key, kind, name in MODEL_FIGURES]
    return figures + [Figure(kind, name, value) for kind, name, value in named if value is not None]


def _model_figure(evaluation: Mapping[str, Any], key: str, model: str) -> float | None:
    """Return a model's figure, stored under the model or, for other rewards and the perplexity, under the figure."""
    own: Mapping[str, Any] = evaluation.get(model) or {}
    of_all: Mapping[str, Any] = evaluation.get(key) or {}
    value: float | None = own.get(key, of_all.get(model))
    return value


def _comparisons(record: Mapping[str, Any]) -> list[Comparison]:
    """Return win rates and differences by prompt, against SFT and against the champion if there was one."""
    evaluation = figures_of(record, "evaluate")
    opponents = {"vs_sft": "SFT"}
    if record["opponent"]["name"] == "champion":
        opponents["vs_opponent"] = f"champion version {record['opponent']['version']}"
    llm_judge, opponent = evaluation.get("llm_judge", {}), opponents.get("vs_opponent", "SFT")
    found: list[tuple[str, str, Mapping[str, Any] | None]] = []
    for key, against in opponents.items():
        controlled = evaluation.get("length_controlled_win_rate", {}).get(key)
        difference = evaluation.get("difference", {}).get(key, {})
        wins = f"Win rate over {against}"
        found += [
            ("win_rate", wins, evaluation.get("win_rate", {}).get(key)),
            ("length_controlled_win_rate", f"{wins} at equal length", controlled),
            *(
                ("win_rate", f"{wins}, by {words}", _win_rate(evaluation, source, key))
                for source, words in OTHER_SOURCES
            ),
            *((kind, f"{words} {against}", difference.get(figure)) for figure, kind, words in DIFFERENCES),
        ]
    found.append(("win_rate", f"Win rate over {opponent}, by {llm_judge.get('model')}", llm_judge.get("vs_opponent")))
    return [
        Comparison(kind, name, each["value"], each["low"], each["high"])
        for kind, name, each in found
        if each is not None and None not in (each.get("value"), each.get("low"), each.get("high"))
    ]


def _win_rate(evaluation: Mapping[str, Any], source: str, opponent: str) -> Mapping[str, Any] | None:
    """Return the win rate by another source; None in early records, which have a difference in its place."""
    found: Mapping[str, Any] | None = (evaluation.get(source) or {}).get(opponent)
    return found if found and "wins" in found else None
