"""The shape of a prepared row: its fields and their types, and the texts it holds."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from tasks.data.extra_columns import columns_fault
from tasks.data.records import ANSWERS, OPTIONAL, TAGS, TYPES, VOTED, Kind, Message, Split, Vote

SPLITS: tuple[Split, ...] = get_args(Split)
ROLES = ("system", "developer", "user", "assistant", "tool")
_NO_TEXTS = ("id", "split", "source", "row", *TAGS.values(), *OPTIONAL)  # no model reads them

_OF_A_VOTE = set(Vote.__annotations__)


class Row(NamedTuple):
    """A prepared row as it was read, before anything about it is known to be right."""

    record: Mapping[str, Any]
    fault: str | None  # what is wrong with its shape; the other fields may be relied on where this is None

    @property
    def location(self) -> str:
        """Where the row came from, as `source:row`."""
        return location_of(self.record)

    @property
    def split(self) -> str:
        """The split of the row, or `unknown` where it names none."""
        split = self.record.get("split")
        return split if split in SPLITS else "unknown"

    @property
    def prompt(self) -> list[Message]:
        """The conversation to answer; only for rows without fault."""
        prompt: list[Message] = self.record["prompt"]
        return prompt


def inspect(kind: Kind, record: Mapping[str, Any]) -> Row:
    """Look at the shape of a record."""
    return Row(record, _fault(kind, record))


def location_of(record: Mapping[str, Any]) -> str:
    """Where a record came from, as `source:row`, whatever its shape."""
    return f"{record.get('source', 'unknown')}:{record.get('row', 'unknown')}"


def texts(record: Mapping[str, Any]) -> Iterator[str]:
    """Every text of a record that people or models wrote, whatever the record's shape."""
    for field, value in record.items():
        if field not in _NO_TEXTS:
            yield from _strings(value)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if isinstance(value.get("arguments"), Mapping):  # of a call: a number may be that of a card
            yield json.dumps(value["arguments"], ensure_ascii=False)
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _fault(kind: Kind, record: Mapping[str, Any]) -> str | None:
    fields = TYPES[kind]._fields
    if missing := [field for field in fields if field not in record and field not in OPTIONAL]:
        return f"{missing[0]} is missing"
    if unknown := [field for field in record if field not in fields]:
        return f"{unknown[0]} is not a field of {kind}"
    faults = (_field_fault(kind, field, record[field]) for field in fields if field not in OPTIONAL)
    beside = (_vote_fault, _number_fault, _columns_fault, _truncated_fault)
    return next((fault for fault in (*faults, *(find(record) for find in beside)) if fault), None)


def _field_fault(kind: Kind, field: str, value: object) -> str | None:
    if field == "split" and value not in SPLITS:
        return f"split is none of {', '.join(SPLITS)}"
    if field in ("row", "desirable"):
        needed = "neither true nor false" if field == "desirable" else "not a number"
        is_sound = isinstance(value, int) and isinstance(value, bool) == (field == "desirable")
        return None if is_sound else f"{field} is {needed}"
    if field == "prompt":
        return _prompt_fault(value)
    if value is None and field in TAGS.values():
        return None
    return _text_fault(kind, field, value)


def _text_fault(kind: Kind, field: str, value: object) -> str | None:
    if field == "references":
        strings = isinstance(value, list) and all(isinstance(text, str) for text in value)
        return _unicode_fault(field, value) if strings else "references is not a list of texts"
    if isinstance(value, dict) and field in ANSWERS[kind]:
        return _answer_fault(field, value)
    return _unicode_fault(field, value) if isinstance(value, str) else f"{field} is {type(value).__name__}, not text"


def _vote_fault(record: Mapping[str, Any]) -> str | None:
    share, votes = (record.get(field) for field in VOTED)
    if share is votes is None:
        return None
    if not isinstance(share, float) or not isinstance(votes, list) or not votes:
        return "share and votes are not a number and a list of votes"
    sound = all(isinstance(vote, dict) and set(vote) == _OF_A_VOTE for vote in votes)
    return None if sound else f"votes has one that is not {', '.join(Vote.__annotations__)}"


def _number_fault(record: Mapping[str, Any]) -> str | None:
    for field in ("weight", "strength"):
        value = record.get(field)
        if value is not None and not (isinstance(value, float) and math.isfinite(value)):
            return f"{field} is no finite number"
    return None


def _columns_fault(record: Mapping[str, Any]) -> str | None:
    columns = record.get("columns", {})
    if not isinstance(columns, dict):
        return "columns is not an object"
    fault = columns_fault(columns)
    return f"the extra column {fault}" if fault else None


def _truncated_fault(record: Mapping[str, Any]) -> str | None:
    lost = record.get("truncated")
    sound = lost is None or (isinstance(lost, dict) and all(isinstance(tokens, int) for tokens in lost.values()))
    return None if sound else "truncated is not an object of tokens by field"


def _prompt_fault(prompt: object) -> str | None:
    if not isinstance(prompt, list) or not prompt:
        return "prompt is not a list of messages"
    for message in prompt:
        if fault := _message_fault(message):
            return f"prompt has a message {fault}"
    if prompt[-1]["role"] not in ("user", "tool"):
        return "prompt does not end with the user's turn or a tool's"
    return _unicode_fault("prompt", prompt)


def _message_fault(message: object) -> str | None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys() <= set(Message.__annotations__):
        return "that is not a role and a content"
    if message["role"] not in ROLES or not isinstance(message["content"], str):
        return f"whose role is none of {', '.join(ROLES)} or whose content is not text"
    if not all(isinstance(message.get(key, ""), str) for key in ("name", "tool_call_id")):
        return "whose name or tool_call_id is not text"
    tools, calls = message.get("tools", []), message.get("tool_calls", [])
    if not isinstance(tools, list) or not all(map(_names_function, tools)):
        return "whose tools are not JSON schemas of functions"
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        return "whose tool_calls are not calls of functions"
    return None


def _names_function(value: object) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _is_call(value: object) -> bool:
    return _names_function(value) and isinstance(value["function"].get("arguments"), dict)  # type: ignore[index]


def _answer_fault(field: str, answer: Mapping[str, Any]) -> str | None:
    if fault := _message_fault(answer):
        return f"{field} is a message {fault}"
    if answer["role"] != "assistant" or not answer.get("tool_calls"):
        return f"{field} is a message without a call of the assistant"
    return _unicode_fault(field, answer)


def _unicode_fault(field: str, value: object) -> str | None:
    try:
        for text in _strings(value):
            text.encode("utf-8")
    except UnicodeEncodeError:
        return f"{field} holds half a surrogate pair, which is no character"
    return None
