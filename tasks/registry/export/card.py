"""Model cards in the format of the Hugging Face hub, written from a model record."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from tasks.common.escapes import Written, code, into_markdown, markdown, one_line, visible
from tasks.common.rounding import number
from tasks.data.records import Kind
from tasks.registry.lineage.redaction import redact_record

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


class NotRecorded(ChainableUndefined):
    """A value that the record lacks: the card says so. A missing figure must not make a promotion fail."""

    def __str__(self) -> str:
        """Return the text in place of the value."""
        return "not recorded"


class IndexEntry(NamedTuple):
    """A figure in the hub's model index."""

    kind: str  # metric type on the hub
    name: str
    value: float
    arguments: Mapping[str, float | None] = {}  # such as the ends of its interval


class Subject(NamedTuple):
    """The model that a card describes."""

    name: str  # of the registered model
    version: int
    template: str  # file name
    task: str  # pipeline_tag on the hub
    library: str
    tags: Sequence[str]
    kinds: Sequence[Kind]  # of its training data; the test split of the last one was used to evaluate it
    tested_on: str  # such as "478 prompts of the test split"


def write_card(subject: Subject, record: Mapping[str, Any], figures: Sequence[IndexEntry], **facts: object) -> str:
    """Write a card; the same record gives the same bytes.

    Args:
        subject: the model.
        record: its model record (see candidate.py). The card says which values a record of an earlier release lacks.
        figures: for the model index.
        facts: other variables of the template.

    Returns:
        Markdown with the metadata as YAML in front.
    """
    from huggingface_hub import ModelCard

    record = redact_record(record)  # one of an earlier release may name paths
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # it escapes HTML only
        finalize=into_markdown,  # names and reasons come from data
        undefined=NotRecorded,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": _figure, "code": code, "quoted": _quoted, "on_hub": _on_hub, "written": Written}
    text = environment.get_template(subject.template).render(
        metadata=_metadata(subject, record, figures).to_yaml(),
        name=subject.name,
        version=subject.version,
        record=record,
        license=_license(record, subject.kinds),
        base=figures_of(record, "base"),
        data=_data_rows(record, subject.kinds),
        hub=record.get("hub", {}),
        **facts,
    )
    return visible(str(ModelCard(text)))  # raises if the metadata are not YAML


def figures_of(record: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """Return a stage's metrics; records of earlier releases have none."""
    found: Mapping[str, Any] = record.get("figures", {}).get(stage, {})
    return found


def has_reward_model(record: Mapping[str, Any]) -> bool:
    """Whether a policy's reward model was trained: where PPO learned from functions only, a note is in its place."""
    return bool(figures_of(record, "reward").get("trained", True))


def _figure(value: object, digits: int = 3) -> Written:
    return Written(number(value if isinstance(value, int | float) else None, digits))


def _quoted(text: str) -> Written:
    """Write a text as a string literal."""
    return Written(json.dumps(one_line(text)))


def _on_hub(name: str, kind: str = "") -> Written:
    """Link to a repository on the hub."""
    address = quote(f"{kind}{name}")
    return Written(f"[{markdown(name)}](https://huggingface.co/{address})")


def _metadata(subject: Subject, record: Mapping[str, Any], figures: Sequence[IndexEntry]) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    hub, prepared = record.get("hub", {}), record["data"]["prepare"]
    names = set(_sources(record, subject.kinds).values())
    names |= {name for kind in subject.kinds for name in prepared.get(kind, {}).get("sources", {})}
    return ModelCardData(
        base_model=hub.get(record["base"]["source"], {}).get("hub"),
        datasets=sorted({hub[name]["hub"] for name in names & hub.keys()}) or None,
        eval_results=_eval_results(subject, record, figures) or None,
        library_name=subject.library,
        license=_license(record, subject.kinds),
        model_name=f"{subject.name} version {subject.version}",
        pipeline_tag=subject.task,
        tags=list(subject.tags),
    )


def _eval_results(subject: Subject, record: Mapping[str, Any], figures: Sequence[IndexEntry]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    source = _sources(record, subject.kinds).get(subject.kinds[-1], "custom")
    pointer = record.get("hub", {}).get(source, {})
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


def _data_rows(record: Mapping[str, Any], kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """Return one row per kind of data: its source, and how many rows were read, valid and quarantined, with reasons."""
    sources, read, checked = _sources(record, kinds), record["data"]["prepare"], record["data"]["validate"]
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


def _sources(record: Mapping[str, Any], kinds: Sequence[Kind]) -> dict[Kind, str]:
    prepare = record["params"].get("prepare", {})
    return {kind: prepare[kind]["source"] for kind in kinds if kind in prepare}


def _license(record: Mapping[str, Any], kinds: Sequence[Kind]) -> str | None:
    """Return the licence that the sources of the base model and of each kind of data state, if it is one."""
    prepared = record["data"]["prepare"]
    stated = {figures_of(record, "base").get("license")}
    for kind in kinds:
        sources = [each for each in prepared.get(kind, {}).get("sources", {}).values() if not each.get("excluded")]
        stated |= {each.get("license") for each in sources or [{}]}
    return stated.pop() if len(stated) == 1 else None
