"""The canonical rows: what every source becomes and every later stage reads.

A record is a NamedTuple in memory and one JSON object a line on disk, with the field names below as keys.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from tasks.common.files import AI_VALIDATED, VALIDATED, damaged_row, read_jsonl, write_jsonl

Split = Literal["train", "validation", "test"]
Kind = Literal["demonstrations", "preferences", "ratings", "prompts", "ai_preferences"]


class Function(TypedDict):
    """The function that a call names, and what it is called with."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """A call of a function by the assistant, as chat templates read it."""

    id: NotRequired[str]
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """One turn of a conversation, as chat templates read it."""

    role: str
    content: str
    tool_calls: NotRequired[list[ToolCall]]  # the assistant's
    name: NotRequired[str]  # of the function whose result the message of a tool is
    tool_call_id: NotRequired[str]  # of its call
    # Of the first message alone: the functions that may be called in the conversation, as JSON schemas
    # ({type: function, function: {name, description, parameters}}). Chat templates are given them apart.
    tools: NotRequired[list[dict[str, Any]]]


# What the assistant says: a text, or a message where it calls functions.
Answer = str | Message


class Demonstration(NamedTuple):
    """A prompt and an answer to imitate."""

    id: str  # stable: a hash of the content, so that the same row has the same id in every run
    split: Split
    source: str  # the file or data set it came from, as params.yaml names it
    row: int  # its row there, from 1
    prompt: list[Message]  # ends with the user's turn, or the result of a tool
    response: Answer  # the assistant's turn
    annotator: str | None = None  # who wrote the answer, where the source names somebody; no part of the content
    truncated: dict[str, int] | None = None  # by the field that was cut: tokens that it lost


class Vote(TypedDict):
    """What one row says of a pair that several annotators have compared."""

    annotator: str
    choice: Literal["chosen", "rejected", "tie"]
    counted: bool  # each annotator has one vote: no repetition, and not taken back by another
    id: str  # that the row alone would have
    source: str
    row: int


class Preference(NamedTuple):
    """A prompt and two answers, of which an annotator, or most of several, chose one."""

    id: str
    split: Split
    source: str
    row: int
    prompt: list[Message]
    chosen: Answer
    rejected: Answer
    annotator: str | None = None  # who chose; None where several have voted
    share: float | None = None  # of the counted votes that are for the chosen answer; None where one row is all
    votes: list[Vote] | None = None  # of all rows of the pair
    weight: float | None = None  # in a loss, where it is not 1: pairs of a ranked list share the weight of one
    strength: float | None = None  # by how much the chosen answer is better, where the source says so
    truncated: dict[str, int] | None = None


class Rating(NamedTuple):
    """A prompt and one answer, which somebody found good or bad: unpaired feedback."""

    id: str
    split: Split
    source: str
    row: int
    prompt: list[Message]
    response: Answer
    desirable: bool
    annotator: str | None = None  # who rated it
    truncated: dict[str, int] | None = None


class Prompt(NamedTuple):
    """A prompt to answer, with reference answers where there are some."""

    id: str
    split: Split
    source: str
    row: int
    prompt: list[Message]
    references: list[str]
    category: str | None = None  # what kind of prompt it is, where the source says so; no part of the content
    # Extra columns of its row, for rewards (extra_columns.py); no part of the content.
    columns: dict[str, Any] = {}  # noqa: RUF012 - nobody changes a record
    truncated: dict[str, int] | None = None


Record = Demonstration | Preference | Rating | Prompt
TYPES: dict[Kind, type[Demonstration] | type[Preference] | type[Rating] | type[Prompt]] = {
    "demonstrations": Demonstration,
    "preferences": Preference,
    "ratings": Rating,
    "prompts": Prompt,
    "ai_preferences": Preference,
}
PAIRS: tuple[Kind, ...] = tuple(kind for kind, type_ in TYPES.items() if type_ is Preference)
# Kinds of which only rows on training prompts are taken: people's measure what is learned.
TRAINING_ONLY: tuple[Kind, ...] = ("ai_preferences",)
# The field of whatever the source says about a row beside its content.
TAGS: dict[Kind, str] = {
    "demonstrations": "annotator",
    "preferences": "annotator",
    "ratings": "annotator",
    "prompts": "category",
    "ai_preferences": "annotator",
}
# Fields of the pairs alone that several annotators have voted on.
VOTED = ("share", "votes")
# Fields that a row has only where they say something.
OPTIONAL = (*VOTED, "weight", "strength", "columns", "truncated")
# The fields with answers to the prompt.
ANSWERS: dict[Kind, tuple[str, ...]] = {
    "demonstrations": ("response",),
    "preferences": ("chosen", "rejected"),
    "ratings": ("response",),
    "prompts": (),
    "ai_preferences": ("chosen", "rejected"),
}


def validated_folder(kind: Kind) -> Path:
    """Give the folder in which `validate` writes the valid rows of a kind."""
    return AI_VALIDATED if kind in TRAINING_ONLY else VALIDATED


def write_records(folder: Path, kind: Kind, records: Iterable[Record]) -> None:
    """Write the records of one kind to `folder`/`kind`.jsonl."""
    write_jsonl(folder / f"{kind}.jsonl", map(as_row, records))


def as_row(record: Record) -> dict[str, Any]:
    """Give the fields of a record as its line has them: without a vote or extra columns where there are none."""
    return {name: value for name, value in record._asdict().items() if value not in (None, {}) or name not in OPTIONAL}


def tidy(text: str) -> str:
    """The text without what no reader sees: Unicode composition, and white space at its ends.

    White space inside and capitals stay: indentation, lists and shouting are things that annotators rate.
    """
    return unicodedata.normalize("NFC", text).strip()


def read_records(folder: Path, kind: Kind, split: Split | None = None) -> Iterator[Record]:
    """Read the records of a kind one at a time, of one split or of all.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    path, fields = folder / f"{kind}.jsonl", set(TYPES[kind]._fields)
    needed = fields.difference(OPTIONAL)
    for number, row in enumerate(read_jsonl(path), start=1):
        if not needed <= row.keys() <= fields:
            raise damaged_row(path, number)
        if split is None or row["split"] == split:
            yield TYPES[kind](**row)


class PairWeights(NamedTuple):
    """What each pair of a split counts."""

    weights: list[float]  # in a loss; 1 where the pair says nothing
    strengths: list[float]  # 0 where the pair says nothing


def read_pair_weights(folder: Path, split: Split, kind: Kind = "preferences") -> PairWeights:
    """Read the weights and strengths of a split's pairs of a kind, in their order.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    found = PairWeights([], [])
    for record in read_records(folder, kind, split):
        assert isinstance(record, Preference)
        found.weights.append(1.0 if record.weight is None else record.weight)
        found.strengths.append(record.strength or 0.0)
    return found


def read_ratings(folder: Path, split: Split | None = None) -> Iterator[Rating]:
    """Read the ratings of a folder one at a time, of one split or of all.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    return (record for record in read_records(folder, "ratings", split) if isinstance(record, Rating))


def read_prompts(folder: Path, split: Split | None = None) -> list[Prompt]:
    """Read the prompts of a folder, of one split or of all.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    return [record for record in read_records(folder, "prompts", split) if isinstance(record, Prompt)]
