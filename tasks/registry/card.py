"""A version's model card in the format of the Hugging Face hub, written from the version's account and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from tasks.params import EXAMPLE
from tasks.registry.decisions import Holder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TEMPLATE = "card.md.j2"
METHODS = {"ppo": "PPO", "dpo": "DPO"}
DATA = ("demonstrations", "preferences", "prompts")
# Figures of each model on the test prompts: key in metrics/evaluate.json, type on the hub, name.
MODEL_FIGURES = (
    ("reward", "reward", "Reward"),
    ("length", "length", "Length, tokens"),
    ("eos_rate", "eos_rate", "Ended by itself"),
    ("repetition", "repetition", "Repeated 4-grams"),
    ("bleu", "bleu", "BLEU"),
    ("chrf", "chrf", "chrF"),
    ("rouge_l", "rouge", "ROUGE-L"),
    ("meteor", "meteor", "METEOR"),
)
# Who else than the reward model said which answer is better: key in metrics/evaluate.json, words.
JUDGES = (("judge", "the held-out judge"), ("references", "the references"), ("gold", "the known rule"))


class Absent(ChainableUndefined):
    """What an account does not hold: the card says so. A promotion must not fail for want of a figure to show."""

    def __str__(self) -> str:
        """Stand in the text for the value."""
        return "not recorded"


class Comparison(NamedTuple):
    """A figure of the policy beside another model's, with the interval that the evaluation gave it."""

    kind: str  # its type on the hub
    name: str
    value: float
    low: float
    high: float


def card(policy: Holder, *, as_adapter: bool = False) -> str:
    """Write the card; the same account gives the same bytes.

    Args:
        policy: the version with its account. What the account of an earlier release lacks is said to be not recorded.
        as_adapter: whether the card lies beside an adapter on the SFT model, in place of the whole weights.

    Returns:
        Markdown with the metadata as YAML in front.
    """
    from huggingface_hub import ModelCard

    account, version = policy["account"], policy["version"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # this is Markdown, and holds no text that a model wrote
        undefined=Absent,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(TEMPLATE).render(
        metadata=_metadata(version, account, as_adapter).to_yaml(),
        version=version,
        reward_version=policy["reward_version"],
        account=account,
        as_adapter=as_adapter,
        method=_method(account),
        license=_license(account),
        base=_figures(account, "base"),
        data=_data_rows(account),
        evaluation=_figures(account, "evaluate"),
        comparisons=_comparisons(account),
        model_figures=MODEL_FIGURES,
        accuracy=_figures(account, "reward").get("accuracy", {}),
        hub=account.get("hub", {}),
    )
    return str(ModelCard(text))  # it reads the metadata, and raises where that is no YAML


def _metadata(version: int, account: Mapping[str, Any], as_adapter: bool) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    hub = account.get("hub", {})
    base = hub.get(account["base"]["source"], {}).get("hub")
    datasets = sorted({pointer["hub"] for source, pointer in hub.items() if source != account["base"]["source"]})
    return ModelCardData(
        base_model=base,
        datasets=datasets or None,
        eval_results=_eval_results(account) or None,
        library_name="peft" if as_adapter else "transformers",
        license=_license(account),
        model_name=f"{account['policy']['name']} version {version}",
        pipeline_tag="text-generation",
        tags=["rlhf", account["method"], "trueline", *(["lora"] if as_adapter else [])],
    )


def _eval_results(account: Mapping[str, Any]) -> "list[EvalResult]":
    """Every figure of the evaluation for the hub's model index, intervals as arguments of the figure."""
    from huggingface_hub import EvalResult

    evaluation = _figures(account, "evaluate")
    source = _sources(account).get("prompts", "custom")
    pointer = account.get("hub", {}).get(source, {})

    def result(kind: str, name: str, value: float, **arguments: float | None) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            dataset_type=pointer.get("hub", source),
            dataset_name=f"{evaluation.get('prompts')} prompts of the test split",
            dataset_split="test",
            dataset_revision=pointer.get("revision"),
            metric_type=kind,
            metric_name=name,
            metric_value=value,
            metric_args={key: value for key, value in arguments.items() if value is not None} or None,
        )

    confidence, kl, candidate = (evaluation.get(key) for key in ("confidence", "kl", "candidate"))
    results = [
        result(each.kind, each.name, each.value, low=each.low, high=each.high, confidence=confidence)
        for each in _comparisons(account)
    ]
    if kl and kl.get("mean") is not None:
        name = "KL(policy || SFT), nats an answer"
        results.append(result("kl", name, kl["mean"], standard_error=kl.get("standard_error")))
    named = [(kind, name, (candidate or {}).get(key)) for key, kind, name in MODEL_FIGURES]
    return results + [result(kind, name, value) for kind, name, value in named if value is not None]


def _comparisons(account: Mapping[str, Any]) -> list[Comparison]:
    """Win rates, and differences by prompt: over SFT, and over the champion of the time where there was one."""
    evaluation = _figures(account, "evaluate")
    rivals = {"vs_sft": "SFT"}
    if account["opponent"]["name"] == "champion":
        rivals["vs_opponent"] = f"champion version {account['opponent']['version']}"
    llm_judge, opponent = evaluation.get("llm_judge", {}), rivals.get("vs_opponent", "SFT")
    found: list[tuple[str, str, Mapping[str, Any] | None]] = []
    for key, rival in rivals.items():
        difference = evaluation.get("difference", {}).get(key, {})
        found += [
            ("win_rate", f"Win rate over {rival}", evaluation.get("win_rate", {}).get(key)),
            *(
                ("win_rate", f"Win rate over {rival}, by {words}", _win_rate(evaluation, judge, key))
                for judge, words in JUDGES
            ),
            ("reward_difference", f"Reward minus that of {rival}", difference.get("reward")),
            ("gold_difference", f"Known rule's score minus that of {rival}", difference.get("gold")),
            ("length_difference", f"Length minus that of {rival}, tokens", difference.get("length")),
            ("rouge_l_difference", f"ROUGE-L minus that of {rival}", difference.get("rouge_l")),
        ]
    name = f"Win rate over {opponent}, by {llm_judge.get('model')}"
    found.append(("win_rate", name, llm_judge.get("vs_opponent")))
    return [
        Comparison(kind, name, each["value"], each["low"], each["high"])
        for kind, name, each in found
        if each is not None and None not in (each.get("value"), each.get("low"), each.get("high"))
    ]


def _win_rate(evaluation: Mapping[str, Any], judge: str, rival: str) -> Mapping[str, Any] | None:
    """By someone who judged; None in accounts that hold a difference of the known rule's score in its place."""
    found: Mapping[str, Any] | None = (evaluation.get(judge) or {}).get(rival)
    return found if found and "wins" in found else None


def _figures(account: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """A stage's metrics; accounts of earlier releases hold none."""
    found: Mapping[str, Any] = account.get("figures", {}).get(stage, {})
    return found


def _data_rows(account: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a kind of data: its source, how many rows were kept, why the others were not."""
    sources, read, checked = _sources(account), account["data"]["prepare"], account["data"]["validate"]
    return [
        {
            **checked[kind],
            "kind": kind,
            **({"source": sources[kind]} if kind in sources else {}),
            **({"read": read[kind]["rows_read"]} if "rows_read" in read.get(kind, {}) else {}),
        }
        for kind in DATA
        if kind in checked
    ]


def _sources(account: Mapping[str, Any]) -> dict[str, str]:
    prepare = account["params"].get("prepare", {})
    return {kind: prepare[kind]["source"] for kind in DATA if kind in prepare}


def _license(account: Mapping[str, Any]) -> str | None:
    """Apache-2.0 where model and data are the built-in example's own; others' terms are not known here."""
    is_own = {account["base"]["source"], *_sources(account).values()} == {EXAMPLE}
    return "apache-2.0" if is_own else None


def _method(account: Mapping[str, Any]) -> str:
    method: str = account["method"]
    return METHODS.get(method, method)
