"""Strict JSON: no key twice, and helpful messages for every fault."""

import json
from collections.abc import Iterable
from typing import Any

from tasks.common.errors import quoted

MAC_FAULT = r"has old Mac line ends (\r alone)"
MAC_CURE = r"convert them, as in tr '\r' '\n' < old > new"


class JsonError(ValueError):
    """A text that is not JSON or has a key twice; the message continues after the name of the place."""

    def __init__(self, text: str, cure: str | None = None, line: int | None = None, *, goes_on: bool = False) -> None:
        super().__init__(text)
        self.cure = cure
        self.line = line
        self.goes_on = goes_on  # the text starts with valid JSON


def parse_json(text: str) -> object:
    """Read JSON in which no object names a key twice.

    Raises:
        JsonError: it is not JSON, has a key twice, is nested too deeply, or has a number that is too long.
    """
    try:
        content: object = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise _not_json(text, error) from None
    except RecursionError:
        raise JsonError(
            "is not valid JSON (lists or objects nested too deeply)", "write it with fewer levels"
        ) from None
    except JsonError:
        raise
    except ValueError:  # of Python's int
        raise JsonError("has a number of more than 4,300 digits", "write it as a text, in quotes") from None
    return content


def _not_json(text: str, error: json.JSONDecodeError) -> JsonError:
    if "\r" in text.rstrip("\r\n") and "\n" not in text.rstrip("\r\n"):
        return JsonError(MAC_FAULT, MAC_CURE)
    goes_on = error.msg == "Extra data"
    return JsonError(f"is not valid JSON, perhaps cut off ({error.msg})", line=error.lineno, goes_on=goes_on)


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"names the key {quoted(twice)} twice in one object", "rename or remove one")
    return found
