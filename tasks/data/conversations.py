r"""Conversations as people write them, to lists of messages and to prompts with their answers.

A conversation may be a list of messages ({role, content} or {from, value}), or one text in the style of Anthropic's
HH data: "\n\nHuman: ...\n\nAssistant: ...". Faults are said as `ShapeError`; whoever knows file and row adds them.
"""

import math
import re
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from tasks.data.records import Message

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
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class ShapeError(ValueError):
    """A value that is not what its column should hold; the message says what it is and what is needed."""


class Turn(NamedTuple):
    """An answer and all that was said before it."""

    prompt: list[Message]  # ends with the user's turn
    response: str


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: list[Message]  # ends with the user's turn
    chosen: str
    rejected: str


def as_text(value: object, name: str) -> str:
    """Check that a value is a text that UTF-8 can hold; empty is fine here.

    Raises:
        ShapeError: it is something else, or holds half of a character (a lone surrogate).
    """
    if not isinstance(value, str):
        raise ShapeError(f"{name} is {_described(value)} where a text is needed")
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
        raise ShapeError(f"{name} is {_described(value)} where a list of messages is needed")
    if not value:
        raise ShapeError(f"{name} is an empty list where at least one message is needed")
    return [_message(item, f"message {number} of {name}") for number, item in enumerate(value, start=1)]


def as_prompt(value: object, system: object = None) -> list[Message]:
    """Read a prompt: a text, which the user says, a message or a conversation that ends with the user's turn.

    A non-empty `system` text is put before it.

    Raises:
        ShapeError: it is something else, or another than the user speaks last.
    """
    if _is_plain(value):
        said = [Message(role="user", content=as_text(value, "prompt"))]
    else:
        said = as_messages([value] if isinstance(value, dict) else value, "prompt")
    if isinstance(value, str) and said[-1] == Message(role="assistant", content=""):
        said.pop()  # "\n\nAssistant:" at the end only asks for the answer
    return with_system(_ending_with_user(said, "prompt"), system)


def with_system(conversation: list[Message], system: object) -> list[Message]:
    """Put a system message first, where `system` holds a text.

    Raises:
        ShapeError: `system` is neither a text nor null, or the conversation has another system message already.
    """
    if system is None or as_text(system, "system") == "":
        return conversation
    message = Message(role="system", content=as_text(system, "system"))
    if conversation[0]["role"] != "system":
        return [message, *conversation]
    if conversation[0] != message:
        raise ShapeError("system and the first message are two different system messages where one is needed")
    return conversation


def answered_turns(conversation: list[Message]) -> Iterator[Turn]:
    """Give every assistant turn that answers the user, each with all that was said before it.

    An assistant turn that answers nobody (a greeting, a second turn in a row) is only part of the history.
    """
    for position in range(1, len(conversation)):
        if conversation[position]["role"] == "assistant" and conversation[position - 1]["role"] == "user":
            yield Turn(conversation[:position], conversation[position]["content"])


def as_answer(value: object, given: list[Message], name: str) -> Turn:
    """Read an answer to a given prompt: a text, an assistant's message, or a conversation that repeats the prompt.

    Where a whole conversation says more before the prompt (a system message, say), its own history is the prompt.

    Raises:
        ShapeError: it is something else, does not end with the assistant, or does not repeat the prompt.
    """
    if _is_plain(value):
        return Turn(given, as_text(value, name))
    said = as_messages([value] if isinstance(value, dict) else value, name)
    history, last = said[:-1], said[-1]
    if last["role"] != "assistant":
        raise ShapeError(f"{name} ends with the {last['role']} where the assistant's answer is needed")
    if history and history[-len(given) :] != given and given[-len(history) :] != history:
        raise ShapeError(f"{name} is a conversation that does not go on from the prompt")
    return Turn(max(history, given, key=len), last["content"])


def as_pair(chosen: object, rejected: object) -> Pair:
    """Find the prompt that two whole conversations, or two whole texts, begin with.

    Raises:
        ShapeError: they are of different kinds, share no prompt, or differ before their last turn.
    """
    wholes = {"chosen": chosen, "rejected": rejected}
    conversations = [as_messages(value, name) for name, value in wholes.items() if not _is_plain(value)]
    if not conversations:
        return _plain_pair(as_text(chosen, "chosen"), as_text(rejected, "rejected"))
    if len(conversations) == 1:
        raise ShapeError("one of chosen and rejected is a conversation and the other a plain text")
    ours, theirs = conversations
    if len(ours) != len(theirs) or ours[:-1] != theirs[:-1]:
        raise ShapeError("chosen and rejected differ before their last turn where they must share the prompt")
    shared = _ending_with_user(ours[:-1], "the part that chosen and rejected share")
    return Pair(
        shared, as_answer(ours[-1], shared, "chosen").response, as_answer(theirs[-1], shared, "rejected").response
    )


def _plain_pair(chosen: str, rejected: str) -> Pair:
    """Cut after the last whole line, or else the last whole word, of the common beginning.

    Answers often begin alike, so that the first difference lies inside them.
    """
    alike = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    beginning = chosen[: sum(1 for _ in alike)]
    cut = beginning.rfind("\n") + 1 or beginning.rfind(" ") + 1
    shared = beginning[:cut].rstrip()
    if not shared:
        raise ShapeError("chosen and rejected share no beginning that could be the prompt (map the column prompt)")
    return Pair([Message(role="user", content=shared)], chosen[cut:], rejected[cut:])


def _ending_with_user(conversation: list[Message], name: str) -> list[Message]:
    if not conversation or conversation[-1]["role"] != "user":
        last = f"ends with the {conversation[-1]['role']}" if conversation else "is empty"
        raise ShapeError(f"{name} {last} where the user must speak last")
    return conversation


def _message(item: object, name: str) -> Message:
    if not isinstance(item, dict):
        raise ShapeError(f"{name} is {_described(item)} where {{role, content}} is needed")
    role, content = ("role", "content") if "role" in item else ("from", "value")
    if role not in item or content not in item:
        raise ShapeError(f"{name} has the keys {', '.join(map(str, item))} where role and content are needed")
    speaker = as_text(item[role], f"the {role} of {name}")
    if speaker.lower() not in ROLES:
        raise ShapeError(f"{name} has the {role} {speaker!r} where one of {', '.join(ROLES)} is needed")
    return Message(role=ROLES[speaker.lower()], content=as_text(item[content], f"the {content} of {name}"))


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and not _is_transcript(value)


def _is_transcript(value: str) -> bool:
    return SPEAKER.match(value) is not None and "\n\nAssistant:" in value


def _transcript(value: str) -> list[Message]:
    _, *parts = SPEAKER.split(value)
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=ROLES[speaker.lower()], content=content.strip()) for speaker, content in spoken]


def _described(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, float) and math.isnan(value):
        return "NaN, a missing value,"
    if isinstance(value, int | float):
        return f"the number {value}"
    names: dict[type, str] = {list: "a list", dict: "an object", str: "a text"}
    return names.get(type(value), f"of the type {type(value).__name__}")
