"""Calls of functions as text: for rewards, judges, text metrics and people, who read no chat template.

The form is the one of Hermes and Qwen, which the template `chatml` writes too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.data.records import Answer, Message, ToolCall, tidy

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
TOOLS_START, TOOLS_END = "<tools>", "</tools>"


def as_answer_message(answer: Answer) -> Message:
    """Give an answer as a message."""
    return Message(role="assistant", content=answer) if isinstance(answer, str) else answer


def answer_as_text(answer: Answer) -> str:
    """Give an answer as a text: what it says, then its calls."""
    return answer if isinstance(answer, str) else _joined(answer["content"], map(_call, answer["tool_calls"]))


def message_as_text(message: Mapping[str, Any]) -> str:
    """Give a message as a text: the functions that may be called, what it says, and its calls."""
    tools = [json.dumps(tool, ensure_ascii=False) for tool in message.get("tools", ())]
    offered = ["\n".join([TOOLS_START, *tools, TOOLS_END])] if tools else []
    return "\n".join([*offered, _joined(message["content"], map(_call, message.get("tool_calls", ())))])


def comparable(message: Message) -> list[object]:
    """Give what a message says, without what no reader sees and without the ids of calls, to compare it with others."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    beside = [each for each in (message.get("name"), calls, message.get("tools")) if each]
    return [message["role"], tidy(message["content"]), *beside]


def comparable_answer(answer: Answer) -> object:
    """Do the same for an answer."""
    return tidy(answer) if isinstance(answer, str) else comparable(answer)


def values_of(value: object) -> Iterator[str | int | float | bool | None]:
    """Give the texts, numbers and truth values in arguments, and the names of objects in these."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from values_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from values_of(inner)
    elif value is None or isinstance(value, str | int | float):
        yield value


def _call(call: ToolCall) -> str:
    function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
    return f"{CALL_START}\n{json.dumps(function, ensure_ascii=False)}\n{CALL_END}"


def _joined(content: str, calls: Iterable[str]) -> str:
    return "\n".join([*([content] if content else []), *calls])
