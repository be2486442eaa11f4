"""The canonical rows: what every source becomes and every later stage reads.

A record is a NamedTuple in memory and one JSON object a line on disk, with the field names below as keys.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from tasks.data.files import damaged_row, read_jsonl, write_jsonl

Split = Literal["train", "validation", "test"]
Kind = Literal["demonstrations", "preferences", "prompts"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Demonstration(NamedTuple):
    """A prompt and an answer to imitate."""

    id: str  # stable: a hash of the content, so that the same row has the same id in every run
    split: Split
    source: str  # the file or data set it came from, as params.yaml names it
    row: int  # its row there, from 1
    prompt: list[Message]  # ends with the user's turn
    response: str  # the assistant's turn
    annotator: str | None = None  # who wrote the answer, where the source names somebody; no part of the content


class Preference(NamedTuple):
    """A prompt and two answers, of which an annotator chose one."""

    id: str
    split: Split
    source: str
    row: int
    prompt: list[Message]
    chosen: str
    rejected: str
    annotator: str | None = None  # who chose


class Prompt(NamedTuple):
    """A prompt to answer, with reference answers where there are some."""

    id: str
    split: Split
    source: str
    row: int
    prompt: list[Message]
    references: list[str]
    category: str | None = None  # what kind of prompt it is, where the source says so; no part of the content


Record = Demonstration | Preference | Prompt
TYPES: dict[Kind, type[Demonstration] | type[Preference] | type[Prompt]] = {
    "demonstrations": Demonstration,
    "preferences": Preference,
    "prompts": Prompt,
}
# The field of whatever the source says about a row beside its content.
TAGS: dict[Kind, str] = {"demonstrations": "annotator", "preferences": "annotator", "prompts": "category"}
# The fields with answers to the prompt.
ANSWERS: dict[Kind, tuple[str, ...]] = {
    "demonstrations": ("response",),
    "preferences": ("chosen", "rejected"),
    "prompts": (),
}


def write_records(folder: Path, kind: Kind, records: Iterable[Record]) -> None:
    """Write the records of one kind to `folder`/`kind`.jsonl."""
    write_jsonl(folder / f"{kind}.jsonl", (record._asdict() for record in records))


def read_records(folder: Path, kind: Kind, split: Split | None = None) -> Iterator[Record]:
    """Read the records of a kind one at a time, of one split or of all.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    path, fields = folder / f"{kind}.jsonl", set(TYPES[kind]._fields)
    for number, row in enumerate(read_jsonl(path), start=1):
        if row.keys() != fields:
            raise damaged_row(path, number)
        if split is None or row["split"] == split:
            yield TYPES[kind](**row)


def read_prompts(folder: Path, split: Split | None = None) -> list[Prompt]:
    """Read the prompts of a folder, of one split or of all.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    return [record for record in read_records(folder, "prompts", split) if isinstance(record, Prompt)]
