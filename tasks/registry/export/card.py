"""What the model cards of policies and reward models share: the format of the Hugging Face hub, and the account."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from tasks.common.escapes import Written, code, into_markdown, markdown, one_line, visible
from tasks.common.rounding import number
from tasks.data.records import Kind
from tasks.registry.lineage.portable_names import without_places

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


class Absent(ChainableUndefined):
    """What an account does not hold: the card says so. A promotion must not fail for want of a figure to show."""

    def __str__(self) -> str:
        """Stand in the text for the value."""
        return "not recorded"


class Figure(NamedTuple):
    """A figure for the hub's model index."""

    kind: str  # its type on the hub
    name: str
    value: float
    arguments: Mapping[str, float | None] = {}  # such as the ends of its interval


class Subject(NamedTuple):
    """What a card is of."""

    name: str  # of the registered model
    version: int
    template: str  # its file
    task: str  # of the hub, where it is called pipeline_tag
    library: str
    tags: Sequence[str]
    kinds: Sequence[Kind]  # of data that made it; the test split of the last one has tested it
    tested_on: str  # such as "478 prompts of the test split"


def write_card(subject: Subject, account: Mapping[str, Any], figures: Sequence[Figure], **facts: object) -> str:
    """Write a card; the same account gives the same bytes.

    Args:
        subject: what it is of.
        account: all that is known of it (see candidate.py). What one of an earlier release lacks is said to be not
            recorded.
        figures: for the model index.
        facts: what else the template asks for.

    Returns:
        Markdown with the metadata as YAML in front.
    """
    from huggingface_hub import ModelCard

    account = without_places(account)  # it may be of an earlier release
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # that is for HTML
        finalize=into_markdown,  # names and reasons come from data
        undefined=Absent,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": _figure, "code": code, "quoted": _quoted, "on_hub": _on_hub, "written": Written}
    text = environment.get_template(subject.template).render(
        metadata=_metadata(subject, account, figures).to_yaml(),
        name=subject.name,
        version=subject.version,
        account=account,
        license=_license(account, subject.kinds),
        base=figures_of(account, "base"),
        data=_data_rows(account, subject.kinds),
        hub=account.get("hub", {}),
        **facts,
    )
    return visible(str(ModelCard(text)))  # it reads the metadata, and raises where that is no YAML


def figures_of(account: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """Give a stage's metrics; accounts of earlier releases hold none."""
    found: Mapping[str, Any] = account.get("figures", {}).get(stage, {})
    return found


def _figure(value: object, digits: int = 3) -> Written:
    return Written(number(value if isinstance(value, int | float) else None, digits))


def _quoted(text: str) -> Written:
    """Write a text as one of Python's."""
    return Written(json.dumps(one_line(text)))


def _on_hub(name: str, kind: str = "") -> Written:
    """Link a repository on the hub."""
    address = quote(f"{kind}{name}")
    return Written(f"[{markdown(name)}](https://huggingface.co/{address})")


def _metadata(subject: Subject, account: Mapping[str, Any], figures: Sequence[Figure]) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    hub, prepared = account.get("hub", {}), account["data"]["prepare"]
    names = set(_sources(account, subject.kinds).values())
    names |= {name for kind in subject.kinds for name in prepared.get(kind, {}).get("sources", {})}
    return ModelCardData(
        base_model=hub.get(account["base"]["source"], {}).get("hub"),
        datasets=sorted({hub[name]["hub"] for name in names & hub.keys()}) or None,
        eval_results=_eval_results(subject, account, figures) or None,
        library_name=subject.library,
        license=_license(account, subject.kinds),
        model_name=f"{subject.name} version {subject.version}",
        pipeline_tag=subject.task,
        tags=list(subject.tags),
    )


def _eval_results(subject: Subject, account: Mapping[str, Any], figures: Sequence[Figure]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    source = _sources(account, subject.kinds).get(subject.kinds[-1], "custom")
    pointer = account.get("hub", {}).get(source, {})
    return [
        EvalResult(
            task_type=subject.task,
            dataset_type=pointer.get("hub", source),
            dataset_name=subject.tested_on,
            dataset_split="test",
            dataset_revision=pointer.get("revision"),
            metric_type=each.kind,
            metric_name=each.name,
            metric_value=each.value,
            metric_args={key: value for key, value in each.arguments.items() if value is not None} or None,
        )
        for each in figures
    ]


def _data_rows(account: Mapping[str, Any], kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """A row a kind of data: its source, how many rows were kept, why the others were not."""
    sources, read, checked = _sources(account, kinds), account["data"]["prepare"], account["data"]["validate"]
    return [
        {
            **checked[kind],
            "kind": kind,
            **({"source": sources[kind]} if kind in sources else {}),
            **({"read": read[kind]["rows_read"]} if "rows_read" in read.get(kind, {}) else {}),
        }
        for kind in kinds
        if kind in checked
    ]


def _sources(account: Mapping[str, Any], kinds: Sequence[Kind]) -> dict[Kind, str]:
    prepare = account["params"].get("prepare", {})
    return {kind: prepare[kind]["source"] for kind in kinds if kind in prepare}


def _license(account: Mapping[str, Any], kinds: Sequence[Kind]) -> str | None:
    """Give the licence that the sources of the base model and of each kind of data state, where it is one."""
    prepared = account["data"]["prepare"]
    stated = {figures_of(account, "base").get("license")}
    for kind in kinds:
        sources = [each for each in prepared.get(kind, {}).get("sources", {}).values() if not each.get("excluded")]
        stated |= {each.get("license") for each in sources or [{}]}
    return stated.pop() if len(stated) == 1 else None
