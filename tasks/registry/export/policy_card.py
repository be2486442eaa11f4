"""A policy version's model card, written from its model record alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.data.records import Kind
from tasks.evaluation.figures import FIGURES, MODELS, PAIRED, reward_title, reward_words
from tasks.evaluation.scores import HELD_OUT, TRAINING
from tasks.methods import METHODS
from tasks.registry.export.card import IndexEntry, Subject, figures_of, write_card
from tasks.registry.promotion.decisions import PolicyVersion

KINDS: tuple[Kind, ...] = ("demonstrations", "preferences", "ratings", "ai_preferences", "prompts")
# Named where the policy learned from them.
NOT_ALWAYS: tuple[Kind, ...] = ("ratings", "ai_preferences")


class Comparison(NamedTuple):
    """A comparison of the policy with another model, with the evaluation's interval."""

    kind: str  # metric type on the hub
    name: str
    value: float
    low: float
    high: float
    digits: int  # behind the point


class ModelFigure(NamedTuple):
    """A figure of each model."""

    kind: str  # its type on the hub
    name: str
    digits: int
    values: list[float | None]  # candidate, SFT, opponent


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
        kinds=[kind for kind in KINDS if kind not in NOT_ALWAYS or _is_learned(kind, record)],
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
        model_figures=[(each.name, each.digits, *each.values) for each in _model_figures(evaluation)],
        accuracy=figures_of(record, "reward").get("accuracy", {}),
    )


def _is_learned(kind: Kind, record: Mapping[str, Any]) -> bool:
    has_rows = bool(record["data"]["prepare"].get(kind, {}).get("records"))
    return has_rows and kind in METHODS[record["method"]].learns_from


def _index(record: Mapping[str, Any]) -> list[IndexEntry]:
    """Return the figures of the whole test split for the hub's model index, with intervals as arguments."""
    evaluation = figures_of(record, "evaluate")
    confidence, kl = evaluation.get("confidence"), evaluation.get("kl")
    figures = [
        IndexEntry(each.kind, each.name, each.value, {"low": each.low, "high": each.high, "confidence": confidence})
        for each in _comparisons(record)
    ]
    if kl and kl.get("mean") is not None:
        name = "KL(policy || SFT), nats per answer"
        figures.append(IndexEntry("kl", name, kl["mean"], {"standard_error": kl.get("standard_error")}))
    return figures + [
        IndexEntry(each.kind, each.name, value)
        for each in _model_figures(evaluation)
        if (value := each.values[0]) is not None
    ]


def _model_figures(evaluation: Mapping[str, Any]) -> list[ModelFigure]:
    """The rewards, then the table of figures."""

    def of_each(values: Mapping[str, Any] | None) -> list[float | None]:
        return [(values or {}).get(model) for model in MODELS]

    own = {model: evaluation.get(model) or {} for model in MODELS}
    perplexity = {"perplexity": evaluation.get("perplexity")}
    rewards = [
        ("held_out_score", HELD_OUT, evaluation.get("held_out")),
        *(("ground_truth_score", name, each) for name, each in (evaluation.get("ground_truth") or {}).items()),
    ]
    return [
        ModelFigure("reward", reward_title(TRAINING), 3, [own[model].get("reward") for model in MODELS]),
        *(ModelFigure(kind, reward_title(name), 3, of_each(each)) for kind, name, each in rewards),
        *(
            ModelFigure(
                each.kind,
                each.words,
                each.digits,
                of_each(perplexity[each.name])
                if each.name in perplexity
                else [own[model].get(each.name) for model in MODELS],
            )
            for each in FIGURES
        ),
    ]


def _comparisons(record: Mapping[str, Any]) -> list[Comparison]:
    """Win rates, and differences by prompt: over SFT, and over the champion of the time where there was one."""
    evaluation = figures_of(record, "evaluate")
    rivals = {"vs_sft": "SFT"}
    if record["opponent"]["name"] == "champion":
        rivals["vs_opponent"] = f"champion version {record['opponent']['version']}"
    llm_judge, opponent = evaluation.get("llm_judge") or {}, rivals.get("vs_opponent", "SFT")
    found: list[tuple[str, str, Mapping[str, Any] | None, int]] = []
    for key, rival in rivals.items():
        wins, controlled = f"Win rate over {rival}", evaluation.get("length_controlled_win_rate") or {}
        found += [
            ("win_rate", wins, (evaluation.get("win_rate") or {}).get(key), 3),
            ("length_controlled_win_rate", f"{wins} at equal length", controlled.get(key), 3),
            *(("win_rate", f"{wins}, by {words}", (rates or {}).get(key), 3) for words, rates in _others(evaluation)),
            *_differences((evaluation.get("difference") or {}).get(key) or {}, rival),
        ]
    by_judge = f"Win rate over {opponent}, by the LLM judge {llm_judge.get('model')}"
    found.append(("win_rate", by_judge, llm_judge.get("vs_opponent"), 3))
    return [
        Comparison(kind, name, each["value"], each["low"], each["high"], digits)
        for kind, name, each, digits in found
        if each is not None and None not in (each.get("value"), each.get("low"), each.get("high"))
    ]


def _others(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None]]:
    """What else than the training reward prefers one answer, in words, with its win rates."""
    ground_truth = evaluation.get("ground_truth") or {}
    return [
        (reward_words(HELD_OUT), evaluation.get("held_out")),
        ("the references", evaluation.get("references")),
        *((reward_words(name), each) for name, each in ground_truth.items()),
    ]


def _differences(difference: Mapping[str, Any], rival: str) -> list[tuple[str, str, Mapping[str, Any] | None, int]]:
    ground_truth = difference.get("ground_truth") or {}
    paired = [(figure, difference.get(figure.name)) for figure in FIGURES if figure.name in PAIRED]
    named = [
        ("reward", reward_title(TRAINING), difference.get("reward"), 3),
        ("held_out", reward_title(HELD_OUT), difference.get("held_out"), 3),
        *(("ground_truth", reward_title(name), each, 3) for name, each in ground_truth.items()),
        *((figure.name, figure.words, each, figure.digits) for figure, each in paired),
    ]
    return [
        (f"{kind}_difference", f"{name}: difference from {rival}", each, digits) for kind, name, each, digits in named
    ]
