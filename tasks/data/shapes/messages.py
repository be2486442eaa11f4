r"""Messages as people write them: {role, content}, {from, value}, or one text in the style of Anthropic's HH data.

That style is "\n\nHuman: ...\n\nAssistant: ...". Of a message everything is read or refused: the role, the content,
and whether it may be learned (weight, train). Faults are raised as `ShapeError`; the caller, which knows file and row,
adds them.
"""

import math
import re
from collections.abc import Iterable
from itertools import islice
from types import NoneType

from tasks.common.errors import quoted
from tasks.data.records import Message
from tasks.data.sources.raw_rows import Unreadable

# Their name of a role: ours.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
# What says whether a message may be learned.
WEIGHTS = ("weight", "train")
MOST_KEYS, LONGEST_KEY, MOST_DIGITS, MOST_BITS = 20, 40, 60, 14_000  # in a sentence
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class ShapeError(ValueError):
    """A value that is not what its column should hold; the message says what it is and what is needed."""


class IgnorableError(ShapeError):
    """A column or key that may be left out knowingly: the caller, which knows the source, says where to name it."""


def as_text(value: object, name: str) -> str:
    """Check that a value is a text that UTF-8 can hold; empty is fine here.

    Raises:
        ShapeError: it is something else, or holds half of a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise ShapeError(f"{name} is {described(value)} where a text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ShapeError(f"{name} holds half a character ({value[error.start]!a}) at position {error.start}") from None
    return value


def as_messages(value: object, name: str) -> list[Message]:
    """Read a conversation: a list of messages, or a text with "Human:" and "Assistant:" turns.

    Raises:
        ShapeError: it is neither, is empty, or a message lacks its role or its text.
    """
    if isinstance(value, str) and _is_transcript(value):
        return _transcript(as_text(value, name))
    if not isinstance(value, list):
        raise ShapeError(f"{name} is {described(value)} where a list of messages is needed")
    if not value:
        raise ShapeError(f"{name} is an empty list where at least one message is needed")
    return [_message(item, f"message {number} of {name}") for number, item in enumerate(value, start=1)]


def context_only(value: object) -> list[int]:
    """Give the positions from 0 of the messages that are there to be read only: of weight 0, or not to train on."""
    items = value if isinstance(value, list) else [value]
    return [
        position
        for position, item in enumerate(items)
        if isinstance(item, dict) and any(is_yes(item.get(name), name) is False for name in WEIGHTS)
    ]


def is_yes(value: object, name: str) -> bool | None:
    """Read a truth value, 1 or 0; null and nothing say neither.

    Raises:
        ShapeError: it is something else, such as a weight between the two.
    """
    if is_nothing(value):
        return None
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    shown = shown_value(value)
    raise ShapeError(f"{name} is {shown} where 1 or 0, true or false is needed")


def is_plain(value: object) -> bool:
    """Tell whether a value is a text, and not one of turns."""
    return isinstance(value, str) and not _is_transcript(value)


def _is_transcript(value: str) -> bool:
    return SPEAKER.match(value) is not None and "\n\nAssistant:" in value


def _transcript(value: str) -> list[Message]:
    _, *parts = SPEAKER.split(value)
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=ROLES[speaker.lower()], content=content.strip()) for speaker, content in spoken]


def _message(item: object, name: str) -> Message:
    if not isinstance(item, dict):
        raise ShapeError(f"{name} is {described(item)} where {{role, content}} is needed")
    role, content = ("role", "content") if "role" in item else ("from", "value")
    if role not in item or content not in item:
        raise ShapeError(f"{name} has the keys {listed(item)} where role and content are needed")
    speaker = as_text(item[role], f"the {role} of {name}")
    if speaker.lower() not in ROLES:
        raise ShapeError(f"{name} has the {role} {quoted(speaker)} where one of {', '.join(ROLES)} is needed")
    ours = ROLES[speaker.lower()]
    _check_others(item, {role, content}, ours, name)
    if isinstance(item[content], list):
        raise ShapeError(
            f"the content of {name} is a list of parts where a text is needed (write their texts as one; images, audio "
            "and the like are not read)"
        )
    return Message(role=ours, content=as_text(item[content], f"the {content} of {name}"))


def _check_others(item: dict[str, object], read: set[str], role: str, name: str) -> None:
    """Refuse what a message says beside its text, unless it says whether it may be learned."""
    if len(item) == len(read):
        return
    others = [key for key, value in item.items() if key not in read and key not in WEIGHTS and not is_nothing(value)]
    if others:
        raise IgnorableError(f"{name} holds {listed(others)} beside its text, which is not read")
    learned = {is_yes(item.get(weight), f"the {weight} of {name}") for weight in WEIGHTS} - {None}
    if len(learned) > 1:
        raise ShapeError(f"the {' and '.join(WEIGHTS)} of {name} say different things")
    if learned == {True} and role != "assistant":
        raise ShapeError(f"{name} is to be learned, but only what the assistant says is (set its weight or train to 0)")


def is_nothing(value: object) -> bool:
    """Tell whether a value says nothing: null, NaN, an empty text, list or object."""
    return value is None or value in ("", [], {}) or (isinstance(value, float) and math.isnan(value))


def listed(names: Iterable[object]) -> str:
    """List names of keys or columns as far as a sentence can."""
    named = [str(name) for name in islice(names, MOST_KEYS + 1)]
    shown = ", ".join(name if len(name) <= LONGEST_KEY else f"{name[:LONGEST_KEY]}…" for name in named[:MOST_KEYS])
    return f"{shown}, …" if len(named) > MOST_KEYS else shown


def described(value: object) -> str:
    """Say in a few words what a value is, for a sentence in which it is the wrong one."""
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, float) and math.isnan(value):
        return "NaN, a missing value,"
    if isinstance(value, int | float):
        return f"the number {_digits(value)}"
    if isinstance(value, Unreadable):
        return f"a value that cannot be read ({value.reason})"
    names: dict[type, str] = {NoneType: "null", list: "a list", dict: "an object", str: "a text"}
    return names.get(type(value), f"of the type {type(value).__name__}")


def shown_value(value: object) -> str:
    """Say what a value is, and of a text how it begins."""
    return f"the text {quoted(value)}" if isinstance(value, str) else described(value)


def _digits(value: float) -> str:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:  # Python may refuse to write it out
        return f"of {value.bit_length():,} bits"
    return str(value)[:MOST_DIGITS]
