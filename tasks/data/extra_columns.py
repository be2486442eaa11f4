"""Extra columns of a prompt's row: what a reward may need besides the texts, such as an answer key or constraints.

They are JSON and of bounded size, whatever the source was, so that they can be written, read and hashed alike by all.
"""

import json
import math
from collections.abc import Mapping

LARGEST = 2**20  # bytes of all extra columns of a row, as JSON
DEEPEST = 32  # lists and objects in one another
MOST_BITS = 64  # of a whole number


def columns_fault(columns: Mapping[str, object]) -> str | None:
    """Find the first reason why extra columns cannot be recorded, with the column's name; None where there is none."""
    for name, value in columns.items():
        if fault := json_fault(value):
            return f"{name} {fault}"
    size = len(json.dumps(columns, ensure_ascii=False).encode())
    if size > LARGEST:
        return f"{', '.join(columns)} have {size:,} bytes, more than the {LARGEST:,} of a row's extra columns"
    return None


def json_fault(value: object, depth: int = 1) -> str | None:
    """Find the first reason why a value is no JSON that all write and read alike; None where there is none."""
    if depth > DEEPEST:
        return f"nests more than {DEEPEST} lists and objects"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            return "holds an object with a key that is no text"
        return _first_fault([*value, *value.values()], depth)
    if isinstance(value, list):
        return _first_fault(value, depth)
    return _plain_fault(value)


def _first_fault(values: list[object], depth: int) -> str | None:
    return next((fault for fault in (json_fault(value, depth + 1) for value in values) if fault), None)


def _plain_fault(value: object) -> str | None:
    if isinstance(value, str):
        return None if _is_unicode(value) else "holds half a character (a lone surrogate)"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"holds {value}, which is no JSON"
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"holds a whole number of more than {MOST_BITS} bits"
    if value is None or isinstance(value, int):
        return None
    return f"holds a value of the type {type(value).__name__}, which is no JSON"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
