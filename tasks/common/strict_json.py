"""JSON as its writer meant it: no key twice, and every fault in words that help."""

import json
from collections.abc import Iterable
from typing import Any

from tasks.common.errors import quoted

MAC_FAULT = r"has old Mac line ends (\r alone)"
MAC_CURE = r"convert them, as in tr '\r' '\n' < old > new"


class JsonError(ValueError):
    """A text that is not JSON, or that says one thing twice; the message goes on after the place."""

    def __init__(self, said: str, cure: str | None = None, line: int | None = None, *, goes_on: bool = False) -> None:
        super().__init__(said)
        self.cure = cure
        self.line = line
        self.goes_on = goes_on  # what it begins with is JSON


def parse_json(text: str) -> object:
    """Read JSON in which no object names a key twice.

    Raises:
        JsonError: it is none, names a key twice, nests too deeply, or holds a number too long to be read.
    """
    try:
        content: object = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise _not_json(text, error) from None
    except RecursionError:
        raise JsonError("is not valid JSON (lists or objects nest too deeply)", "write it with fewer levels") from None
    except JsonError:
        raise
    except ValueError:  # of Python's int
        raise JsonError("holds a number of more than 4,300 digits", "write it as a text, in quotes") from None
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
