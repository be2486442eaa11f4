"""Values of a row's columns: what they should be, and in words what they are.

Faults are raised as `ShapeError`; the caller, which knows file and row, adds them.
"""

import math
from collections.abc import Iterable
from itertools import islice
from types import NoneType

from tasks.common.errors import quoted
from tasks.data.sources.raw_rows import Unreadable

MOST_KEYS, LONGEST_KEY, MOST_DIGITS, MOST_BITS = 20, 40, 60, 14_000  # in a sentence


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
