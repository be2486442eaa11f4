"""A policy version's model card, written from its account and nothing else."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks.common.rounding import digits_of
from tasks.data.records import Kind
from tasks.registry.export.card import Figure, Subject, figures_of, write_card
from tasks.registry.promotion.decisions import Holder

METHODS = {"ppo": "PPO", "dpo": "DPO"}
KINDS: tuple[Kind, ...] = ("demonstrations", "preferences", "prompts")
MODELS = ("candidate", "sft", "opponent")
# Figures of each model on the test prompts: key in metrics/evaluate.json, type on the hub, name.
MODEL_FIGURES = (
    ("reward", "reward", "Reward"),
    ("held_out", "held_out_score", "Held-out judge's score"),
    ("ground_truth", "ground_truth_score", "Known rule's score"),
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
    ("held_out", "held_out_difference", "Held-out judge's score minus that of"),
    ("ground_truth", "ground_truth_difference", "Known rule's score minus that of"),
    ("length", "length_difference", "Length in tokens minus that of"),
    ("eos_rate", "eos_rate_difference", "Share ended by itself minus that of"),
    ("repetition", "repetition_difference", "Repeated 4-grams minus those of"),
    ("rouge_l", "rouge_l_difference", "ROUGE-L minus that of"),
)
# Who else than the reward model said which answer is better: key in metrics/evaluate.json, words.
JUDGES = (("held_out", "the held-out judge"), ("references", "the references"), ("ground_truth", "the known rule"))


class Comparison(NamedTuple):
    """A figure of the policy beside another model's, with the interval that the evaluation gave it."""

    kind: str  # its type on the hub
    name: str
    value: float
    low: float
    high: float

    @property
    def digits(self) -> int:
        """How many are shown."""
        return digits_of(self.kind.removesuffix("_difference"))


def policy_card(policy: Holder, *, as_adapter: bool = False) -> str:
    """Write the card of a policy version.

    Args:
        policy: the version with its account.
        as_adapter: whether the card lies beside an adapter on the SFT model, in place of the whole weights.

    Returns:
        Markdown with the metadata as YAML in front.
    """
    account = policy["account"]
    evaluation, method = figures_of(account, "evaluate"), account["method"]
    subject = Subject(
        name=account["policy"]["name"],
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
        account,
        _index(account),
        reward_version=policy["reward_version"],
        as_adapter=as_adapter,
        method=METHODS.get(method, method),
        evaluation=evaluation,
        comparisons=_comparisons(account),
        model_figures=[
            (name, digits_of(key), *(_model_figure(evaluation, key, model) for model in MODELS))
            for key, _, name in MODEL_FIGURES
        ],
        accuracy=figures_of(account, "reward").get("accuracy", {}),
    )


def _index(account: Mapping[str, Any]) -> list[Figure]:
    """The figures of the whole test split for the hub's model index, intervals as arguments of the figure."""
    evaluation = figures_of(account, "evaluate")
    confidence, kl = evaluation.get("confidence"), evaluation.get("kl")
    figures = [
        Figure(each.kind, each.name, each.value, {"low": each.low, "high": each.high, "confidence": confidence})
        for each in _comparisons(account)
    ]
    if kl and kl.get("mean") is not None:
        name = "KL(policy || SFT), nats an answer"
        figures.append(Figure("kl", name, kl["mean"], {"standard_error": kl.get("standard_error")}))
    named = [(kind, name, _model_figure(evaluation, key, "candidate")) for key, kind, name in MODEL_FIGURES]
    return figures + [Figure(kind, name, value) for kind, name, value in named if value is not None]


def _model_figure(evaluation: Mapping[str, Any], key: str, model: str) -> float | None:
    """A model's own figure, or what stands for it under the figure's name: of the judges and the perplexity."""
    own: Mapping[str, Any] = evaluation.get(model) or {}
    of_all: Mapping[str, Any] = evaluation.get(key) or {}
    value: float | None = own.get(key, of_all.get(model))
    return value


def _comparisons(account: Mapping[str, Any]) -> list[Comparison]:
    """Win rates, and differences by prompt: over SFT, and over the champion of the time where there was one."""
    evaluation = figures_of(account, "evaluate")
    rivals = {"vs_sft": "SFT"}
    if account["opponent"]["name"] == "champion":
        rivals["vs_opponent"] = f"champion version {account['opponent']['version']}"
    llm_judge, opponent = evaluation.get("llm_judge", {}), rivals.get("vs_opponent", "SFT")
    found: list[tuple[str, str, Mapping[str, Any] | None]] = []
    for key, rival in rivals.items():
        controlled = evaluation.get("length_controlled_win_rate", {}).get(key)
        difference = evaluation.get("difference", {}).get(key, {})
        wins = f"Win rate over {rival}"
        found += [
            ("win_rate", wins, evaluation.get("win_rate", {}).get(key)),
            ("length_controlled_win_rate", f"{wins} at equal length", controlled),
            *(("win_rate", f"{wins}, by {words}", _win_rate(evaluation, judge, key)) for judge, words in JUDGES),
            *((kind, f"{words} {rival}", difference.get(figure)) for figure, kind, words in DIFFERENCES),
        ]
    found.append(("win_rate", f"Win rate over {opponent}, by {llm_judge.get('model')}", llm_judge.get("vs_opponent")))
    return [
        Comparison(kind, name, each["value"], each["low"], each["high"])
        for kind, name, each in found
        if each is not None and None not in (each.get("value"), each.get("low"), each.get("high"))
    ]


def _win_rate(evaluation: Mapping[str, Any], judge: str, rival: str) -> Mapping[str, Any] | None:
    """By someone who judged; None in accounts that hold a difference of the known rule's score in its place."""
    found: Mapping[str, Any] | None = (evaluation.get(judge) or {}).get(rival)
    return found if found and "wins" in found else None
