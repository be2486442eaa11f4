"""Reasoning in a key of its own, as DeepSeek, Qwen and their servers give it: it becomes a part of the message's text.

The form is that of Qwen's and DeepSeek's chat templates, in the marks of `base.reasoning`: start, a line break, the
reasoning, a line break, end, an empty line, the text.
"""

from typing import Any

from tasks.data.shapes.messages import CALLERS, ROLES, text_of_content
from tasks.data.shapes.values import ShapeError, as_text, is_nothing
from tasks.settings.base import Reasoning

KEY = "reasoning_content"


def with_reasoning(value: object, marks: Reasoning) -> object:
    """Write the reasoning of the assistant's messages, one or a list of them, before their text.

    Anything else is given as it is.

    Raises:
        ShapeError: reasoning is no text, or the text holds reasoning too.
    """
    if isinstance(value, list):
        return [with_reasoning(item, marks) for item in value]
    if not isinstance(value, dict) or is_nothing(value.get(KEY)):
        return value
    speaker, content = ("role", "content") if "role" in value else ("from", "value")
    role = str(value.get(speaker)).lower()
    if ROLES.get(role) != "assistant" or role in CALLERS:
        return value
    others = {name: each for name, each in value.items() if name != KEY}
    return others | {content: _joined(value, content, marks)}


def _joined(message: dict[str, Any], content: str, marks: Reasoning) -> str:
    reasoning = as_text(message[KEY], KEY).strip("\n")
    text = "" if is_nothing(message.get(content)) else text_of_content(message[content], content)
    if marks.start in text or marks.end in text:
        raise ShapeError(f"a message has {KEY} and {marks.start} or {marks.end} in its {content} where one is needed")
    thought = f"{marks.start}\n{reasoning}\n{marks.end}"
    return f"{thought}\n\n{text.lstrip(chr(10))}" if text else thought
