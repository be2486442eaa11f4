"""Conversations that somebody wrote out as text into a column, as JSON or as Python shows them."""

import ast
import re
import warnings
from typing import Any

from tasks.common.strict_json import JsonError, parse_json
from tasks.data.shapes.messages import ROLES
from tasks.data.shapes.values import ShapeError

# Characters of Python text: its reader takes many times the memory of the text.
LONGEST_PYTHON = 1_000_000
KEYS = (("role", "content"), ("from", "value"))
# Who speaks in conversations, whether or not we take their words.
SPEAKERS = {*ROLES, "developer"}
BEGINS = re.compile(r"""\s*(?:\[\s*)?\{\s*["']""")
WRITTEN_TWICE = re.compile(r"""\s*"\s*[\[{]""")  # JSON of JSON
BEGINS_TEXTS = re.compile(r"""\s*\[\s*["']""")
# A list of messages in any dialect; numpy writes no commas between them, and array( before them.
LOOKS_WRITTEN = re.compile(
    r"""(?:array\(\s*)?\[\s*\{\s*["'](?:role|content|from|value)["']\s*:.*\}\s*\](?:,\s*dtype=object\s*\))?""",
    re.DOTALL,
)


def read_written(value: object, name: str) -> object:
    """Give the message or the list of messages that a text is as a whole; anything else is given as it is.

    So a text stays a text where there is anything beside the list, where an item of it has no speaker (role or from),
    or where no speaker is one of a conversation.

    Raises:
        ShapeError: it begins and ends as a list of messages does, but is neither JSON nor Python.
    """
    if not isinstance(value, str):
        return value
    if WRITTEN_TWICE.match(value):
        once = _parsed(value, name)
        inner = read_written(once, name)
        return value if inner is once else inner
    if BEGINS.match(value):
        found = _parsed(value, name)
        if found is not None:
            return found if _are_messages(found) else value
    if LOOKS_WRITTEN.fullmatch(value.strip()) and any(all(key in value for key in keys) for keys in KEYS):
        raise ShapeError(
            f"{name} looks like a conversation written out as a text, but is neither JSON nor a list of Python's "
            "(write it as a list; a text that is meant as it stands goes into one message, {role, content})"
        )
    return value


def read_written_texts(value: object, name: str) -> object:
    """Give the texts of a list that a text is as a whole, as in a CSV file; anything else is given as it is."""
    if isinstance(value, str) and BEGINS_TEXTS.match(value):
        found = _parsed(value, name)
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return found
    return value


def read_written_list(value: object, name: str) -> object:
    """Give the list that a text is as a whole, as in a CSV file; anything else is given as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        found = _parsed(value, name)
        if isinstance(found, list):
            return found
    return value


def _parsed(text: str, name: str) -> object:
    try:
        return parse_json(text)
    except JsonError as fault:
        if "twice" in str(fault) and LOOKS_WRITTEN.fullmatch(text.strip()):
            raise ShapeError(f"{name} {fault}") from None
    if len(text) > LONGEST_PYTHON:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that Python does not know
            found: object = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found


def _are_messages(found: object) -> bool:
    if isinstance(found, dict):
        return any(speaker in found and content in found for speaker, content in KEYS) and _speaks(found)
    return isinstance(found, list) and all(map(_has_speaker, found)) and any(map(_speaks, found))


def _has_speaker(item: object) -> bool:
    return isinstance(item, dict) and any(isinstance(item.get(speaker), str) for speaker, _ in KEYS)


def _speaks(item: dict[str, Any]) -> bool:
    return any(str(item.get(speaker)).lower() in SPEAKERS for speaker, _ in KEYS)
