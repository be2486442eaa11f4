r"""Messages as people write them: {role, content}, {from, value}, or one text in the style of Anthropic's HH data.

That style is "\n\nHuman: ...\n\nAssistant: ...". Of a message everything is read or refused: the role, the content,
calls of functions, and whether it may be learned (weight, train). Faults are raised as `ShapeError`; the caller, which
knows file and row, adds them.
"""

import re
from typing import Any

from tasks.common.errors import quoted
from tasks.data.records import Message, ToolCall
from tasks.data.shapes.tools import TOOLS, as_calls, as_tools
from tasks.data.shapes.values import (
    IgnorableError,
    ShapeError,
    as_text,
    described,
    is_nothing,
    is_yes,
    listed,
    shown_value,
)

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
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
# Roles whose text is a call. It goes on from the assistant's message right before it, as one message.
CALLERS = ("function_call", "tool_call")
# Keys of the assistant's calls (the second is OpenAI's older one), and of what a message of a tool answers.
CALLS, RESULT_OF = ("tool_calls", "function_call"), ("name", "tool_call_id")
OWN = {"assistant": CALLS, "tool": RESULT_OF}  # keys that a role may have
# What says whether a message may be learned.
WEIGHTS = ("weight", "train")
PART = "text"  # the type of a part of a message that is read, and its key
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


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
    messages: list[Message] = []
    for number, item in enumerate(value, start=1):
        message = _message(item, f"message {number} of {name}", is_first=number == 1)
        before = value[number - 2] if messages else None
        if not _goes_on(before, item):
            if message["role"] == "tool" and (not messages or messages[-1]["role"] not in ("assistant", "tool")):
                raise ShapeError(f"message {number} of {name} is the result of a tool, but follows no call")
            messages.append(message)
            continue
        if context_only(before) != context_only(item):
            raise ShapeError(f"message {number} of {name} is a part of the one before, but only one is to be learned")
        messages[-1] = _joined(messages[-1], message)
    return messages


def context_only(value: object) -> list[int]:
    """Give the positions from 0 of the messages that are there to be read only: of weight 0, or not to train on."""
    items = value if isinstance(value, list) else [value]
    found, position = [], -1
    for before, item in zip([None, *items], items, strict=False):
        position += not _goes_on(before, item)
        if isinstance(item, dict) and any(is_yes(item.get(name), name) is False for name in WEIGHTS):
            found.append(position)
    return list(dict.fromkeys(found))


def is_plain(value: object) -> bool:
    """Tell whether a value is a text, and not one of turns."""
    return isinstance(value, str) and not _is_transcript(value)


def _is_transcript(value: str) -> bool:
    return SPEAKER.match(value) is not None and "\n\nAssistant:" in value


def _transcript(value: str) -> list[Message]:
    _, *parts = SPEAKER.split(value)
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=ROLES[speaker.lower()], content=content.strip()) for speaker, content in spoken]


def _message(item: object, name: str, *, is_first: bool) -> Message:
    if not isinstance(item, dict):
        raise ShapeError(f"{name} is {described(item)} where {{role, content}} is needed")
    role, content = ("role", "content") if "role" in item else ("from", "value")
    has_calls = any(not is_nothing(item.get(key)) for key in CALLS)
    if role not in item or (content not in item and not has_calls):
        raise ShapeError(f"{name} has the keys {listed(item)} where role and content are needed")
    speaker = as_text(item[role], f"the {role} of {name}").lower()
    if speaker not in ROLES:
        raise ShapeError(f"{name} has the {role} {quoted(item[role])} where one of {', '.join(ROLES)} is needed")
    ours = ROLES[speaker]
    own = [*OWN.get(ours, ()), *([TOOLS] if is_first else [])]
    _check_others(item, {role, content, *own}, ours, name)
    message = _of_speaker(item, speaker, content, name)
    if is_first and (tools := as_tools(item.get(TOOLS))):
        message["tools"] = tools  # as our own records have them
    return message


def _of_speaker(item: dict[str, Any], speaker: str, content: str, name: str) -> Message:
    ours, has_calls = ROLES[speaker], any(not is_nothing(item.get(key)) for key in CALLS)
    if speaker in CALLERS:
        return Message(role=ours, content="", tool_calls=as_calls(item.get(content), f"the {content} of {name}"))
    is_call_alone = ours == "assistant" and has_calls and item.get(content) is None
    where = f"the {content} of {name}"
    message = Message(role=ours, content="" if is_call_alone else text_of_content(item[content], where))
    if ours == "assistant" and has_calls:
        message["tool_calls"] = _calls(item, name)
    if ours == "tool":
        _add_result_of(message, item, name)
    return message


def text_of_content(value: object, name: str) -> str:
    """Read what a message says: a text, or a list of parts that are texts, {type: text, text}, a line each.

    So servers join the parts for templates that take texts alone.

    Raises:
        ShapeError: it is neither; an image, say.
    """
    if not isinstance(value, list) or not value:
        return as_text(value, name)
    return "\n".join(_text_of_part(part, f"part {number} of {name}") for number, part in enumerate(value, start=1))


def _text_of_part(part: object, name: str) -> str:
    if not isinstance(part, dict):
        raise ShapeError(f"{name} is {described(part)} where {{type: text, text}} is needed")
    if part.get("type") != PART:
        found = "no type" if is_nothing(part.get("type")) else f"the type {shown_value(part['type'])}"
        raise ShapeError(f"{name} has {found} where {PART} is needed: images, audio and the like are not read")
    others = [key for key, value in part.items() if key not in ("type", PART) and not is_nothing(value)]
    if others:
        raise ShapeError(f"{name} holds {listed(others)} beside its text, which is not read")
    return as_text(part.get(PART), f"the text of {name}")


def _calls(item: dict[str, Any], name: str) -> list[ToolCall]:
    [key, *others] = [key for key in CALLS if not is_nothing(item.get(key))]
    if others:
        raise ShapeError(f"{name} has {' and '.join(CALLS)} where one is needed")
    return as_calls(item[key], f"{key} of {name}")


def _add_result_of(message: Message, item: dict[str, Any], name: str) -> None:
    for key in RESULT_OF:
        if not is_nothing(item.get(key)):
            message[key] = as_text(item[key], f"the {key} of {name}")  # type: ignore[literal-required]


def _goes_on(before: object, item: object) -> bool:
    """Tell whether an item of a conversation is a call that belongs to the message before it."""
    return _speaker(item) in CALLERS and ROLES.get(_speaker(before)) == "assistant"


def _speaker(item: object) -> str:
    return str(item.get("role", item.get("from"))).lower() if isinstance(item, dict) else ""


def _joined(before: Message, call: Message) -> Message:
    return {**before, "tool_calls": [*before.get("tool_calls", []), *call["tool_calls"]]}


def _check_others(item: dict[str, object], read: set[str], role: str, name: str) -> None:
    """Refuse what a message says beside its text, unless it says whether it may be learned."""
    if item.keys() <= read:
        return
    others = [key for key, value in item.items() if key not in read and key not in WEIGHTS and not is_nothing(value)]
    if others:
        raise IgnorableError(f"{name} holds {listed(others)} beside its text, which is not read")
    learned = {is_yes(item.get(weight), f"the {weight} of {name}") for weight in WEIGHTS} - {None}
    if len(learned) > 1:
        raise ShapeError(f"the {' and '.join(WEIGHTS)} of {name} say different things")
    if learned == {True} and role != "assistant":
        raise ShapeError(f"{name} is to be learned, but only what the assistant says is (set its weight or train to 0)")
