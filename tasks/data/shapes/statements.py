"""What a row says about itself beside its texts: that it is not to be learned, a bad answer, or wrong by its scores.

Such a row is left out, with its reason; a column that means something else is named in the source's `ignore`.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from tasks.common.errors import quoted
from tasks.data.records import PAIRS, Kind
from tasks.data.shapes.messages import WEIGHTS
from tasks.data.shapes.tools import TOOLS
from tasks.data.shapes.values import IgnorableError, ShapeError, is_nothing, shown_value

# A label of a single answer: true is good. A rating of one: a number.
LABEL, RATING = "label", "rating"
TRUTHS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "good", "desirable", "thumbs up", "thumbs_up", "up"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", "bad", "undesirable", "thumbs down", "thumbs_down", "down"), False),
}
SCORES = ("score", "rating", "reward", "grade")  # in the names of a column of chosen and of its twin of rejected
MARGIN = "margin"  # how much better the chosen answer is
STATEMENTS = (*WEIGHTS, LABEL, TOOLS)
COMPARED: tuple[Kind, ...] = (*PAIRS, "ratings")  # kinds whose rows may have scores
# Columns that change what a text means, and for which records have no place.
NOT_READ: Mapping[str, str] = {
    "history": "earlier turns: write the row as messages",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "more than text: only text is read"),
}


class Left(NamedTuple):
    """Why a row is left out."""

    reason: str  # a word for counting
    detail: str


def reason_to_leave_out(fields: Mapping[str, Any], kind: Kind) -> Left | None:
    """Find what a row says against itself, after the column map.

    Raises:
        ShapeError: a column holds what cannot be understood, or what no record has a place for.
    """
    _refuse_what_is_not_read(fields)
    weights = {name: _truth(fields.get(name), name) for name in WEIGHTS}
    if {True, False} <= set(weights.values()):
        raise ShapeError(f"{' and '.join(WEIGHTS)} say different things")
    bad = is_bad(fields)
    for name, is_learned in weights.items():
        if is_learned is False:
            return Left("weight", f"its {name} says that it is not to be learned")
    if kind != "prompts" and bad:
        return Left("label", "its label says that the answer is bad")
    return _wrong_scores(fields) if kind in COMPARED else None


def is_desirable(label: object) -> bool:
    """Read the label of a rated answer.

    Raises:
        ShapeError: it says neither good nor bad.
    """
    found = _truth(label, LABEL)
    if found is None:
        raise ShapeError(f"{LABEL} is {shown_value(label)} where true or false, 1 or 0 is needed")
    return found


def as_number(value: object, name: str) -> float:
    """Read a rating, rank or strength.

    Raises:
        ShapeError: it is no number, or an infinite one.
    """
    found = _number(value)
    if found is None or not math.isfinite(found):
        raise ShapeError(f"{name} is {shown_value(value)} where a number is needed")
    return found


def is_bad(fields: Mapping[str, Any]) -> bool:
    """Tell whether the label of a row says that its answer is bad.

    Raises:
        ShapeError: it says neither.
    """
    return _truth(fields.get(LABEL), LABEL) is False


@lru_cache(maxsize=1000)
def is_read(name: str, kind: Kind) -> bool:
    """Tell whether a column of this name is read here."""
    lower = name.lower()
    is_score = ("chosen" in lower or "rejected" in lower) and any(score in lower for score in SCORES)
    return name in STATEMENTS or (kind in COMPARED and (name == MARGIN or is_score))


def _refuse_what_is_not_read(fields: Mapping[str, Any]) -> None:
    for name in sorted(NOT_READ.keys() & fields.keys()):
        if not is_nothing(fields[name]):
            raise IgnorableError(f"{name} holds {NOT_READ[name]}")


def _truth(value: object, name: str) -> bool | None:
    if is_nothing(value):
        return None
    word = str(value).strip().casefold() if isinstance(value, str | bool | int | float) else ""
    if word not in TRUTHS:
        shown = shown_value(value)
        raise IgnorableError(f"{name} is {shown} where true or false, 1 or 0 is needed, if it rates the row")
    return TRUTHS[word]


def strength_of(fields: Mapping[str, Any]) -> float | None:
    """Find by how much the chosen answer of a pair is better: its margin, or the difference of the first scores."""
    for name, value in fields.items():
        twin = _twin(name)
        if name != MARGIN and twin is None:
            continue
        chosen, rejected = _number(value), _number(fields.get(twin)) if twin else 0.0
        if chosen is not None and rejected is not None and math.isfinite(chosen - rejected):
            return chosen - rejected
    return None


def _wrong_scores(fields: Mapping[str, Any]) -> Left | None:
    """Compare the scores of the two answers; of equal ones neither was preferred."""
    for name, value in fields.items():
        twin = _twin(name)
        if name != MARGIN and twin is None:
            continue
        other = fields.get(twin) if twin else None
        chosen, rejected = _number(value), 0.0 if name == MARGIN else _number(other)
        if chosen is None or rejected is None:
            continue
        found = chosen - rejected
        detail = f"{name} is {quoted(value)}" + (f" and {twin} {quoted(other)}" if twin else "")
        if found < 0:
            return Left("scores", detail)
        if found == 0:
            return Left("equal_scores", detail)
    return None


@lru_cache(maxsize=1000)
def _twin(name: str) -> str | None:
    """Give the name that the score of the rejected answer has, by that of the chosen one."""
    lower = name.lower()
    if "chosen" in lower and any(score in lower for score in SCORES):
        at = lower.index("chosen")
        return f"{name[:at]}rejected{name[at + len('chosen') :]}"
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None  # noqa: PLR0124 - NaN is none
