"""Which of two answers a label prefers: A, B or tie, 1 or 2, an index, a truth value, or a column for each outcome.

Nothing is guessed: 0 beside 1 names the second answer in some files and the first in others, so the column map says it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from tasks.data.names import WHOLE_NUMBER
from tasks.data.shapes.values import ShapeError, shown_value

Outcome = Literal["first", "second", "tie"]
# The columns of the two answers, of which a row has one pair.
ANSWER_PAIRS = (
    ("response_a", "response_b"),
    ("output_1", "output_2"),
    ("conversation_a", "conversation_b"),
    ("response1", "response2"),
)
LABELS: Mapping[str, Outcome] = {
    **dict.fromkeys(("a", "1", "first", "model_a", "response_a", "output_1"), "first"),
    **dict.fromkeys(("b", "2", "second", "model_b", "response_b", "output_2"), "second"),
    **dict.fromkeys(("tie", "1.5", "tie (bothbad)", "both_bad", "draw", "equal", "same", "neither"), "tie"),
}
INDICES: Mapping[str, Outcome] = {"0": "first", "1": "second"}
TRUTHS: Mapping[str, Outcome] = {"1": "first", "true": "first", "0": "second", "false": "second"}
# One column decides; each has the values that it may hold.
SINGLE: Mapping[str, Mapping[str, Outcome]] = {
    "preference": LABELS,
    "winner": LABELS,
    "preferred_index": INDICES,
    "first_preferred": TRUTHS,
}
# One column an outcome, of which one says yes.
ONE_HOT: Mapping[str, Outcome] = {"winner_model_a": "first", "winner_model_b": "second", "winner_tie": "tie"}
# A column an annotator, as PandaLM has them.
ANNOTATORS = ("annotator1", "annotator2", "annotator3")
COUNTED: Mapping[str, Outcome] = {"0": "tie", "1": "first", "2": "second"}
LABEL_COLUMNS = (*SINGLE, *ONE_HOT)
LARGEST = 2  # whole number that is a label: Python refuses to write out some larger ones


def compared(fields: Mapping[str, Any]) -> tuple[dict[str, Any], str, bool]:
    """Put chosen and rejected in the place of two answers and their label; tell which was chosen, and if it is a tie.

    The answers of a tie are chosen and rejected in the order that the row has them in.

    Raises:
        ShapeError: no column or several that differ tell the outcome, or one holds another value than it may.
    """
    ordered, chosen, outcome = _ordered(fields, _outcome(fields))
    return ordered, chosen, outcome == "tie"


def compared_by(fields: Mapping[str, Any], annotator: str) -> tuple[dict[str, Any], bool]:
    """Do the same by the column of one annotator: 1 or 2, or 0 for a tie.

    Raises:
        ShapeError: it holds another value.
    """
    ordered, _, outcome = _ordered(fields, _outcome_of(annotator, fields[annotator], COUNTED))
    return ordered, outcome == "tie"


def _ordered(fields: Mapping[str, Any], outcome: Outcome) -> tuple[dict[str, Any], str, Outcome]:
    first, second = next(pair for pair in ANSWER_PAIRS if pair[0] in fields)
    chosen, rejected = (second, first) if outcome == "second" else (first, second)
    others = {name: value for name, value in fields.items() if name not in (first, second, *LABEL_COLUMNS)}
    return others | {"chosen": fields[chosen], "rejected": fields[rejected]}, chosen, outcome


def _outcome(fields: Mapping[str, Any]) -> Outcome:
    outcomes = {
        name: _outcome_of(name, fields[name], values) for name, values in SINGLE.items() if fields[name] is not None
    }
    if any(fields[name] is not None for name in ONE_HOT):
        outcomes[", ".join(ONE_HOT)] = _one_hot(fields)
    if not outcomes:
        raise ShapeError(
            f"none of {', '.join(LABEL_COLUMNS)} tells which answer was preferred (map the column that does)"
        )
    if len(set(outcomes.values())) > 1:
        raise ShapeError(f"{' and '.join(outcomes)} differ on which answer was preferred")
    return next(iter(outcomes.values()))


def _outcome_of(name: str, value: object, values: Mapping[str, Outcome]) -> Outcome:
    label = _word(value)
    if label in values:
        return values[label]
    if values is LABELS and label in TRUTHS:
        raise ShapeError(
            f"{name} is {shown_value(value)}, which may be the first answer or mean that it lost (map the column as "
            "preferred_index where 0 is the first answer and 1 the second, as first_preferred where 1 is the first "
            "and 0 the second)"
        )
    raise ShapeError(f"{name} is {shown_value(value)} where one of {', '.join(values)} is needed")


def _one_hot(fields: Mapping[str, Any]) -> Outcome:
    words = {name: _word(fields[name]) for name in ONE_HOT}
    yes = [name for name, word in words.items() if word in ("1", "true")]
    if len(yes) != 1 or any(word not in TRUTHS for word in words.values()):
        raise ShapeError(
            f"{', '.join(f'{name} is {shown_value(fields[name])}' for name in ONE_HOT)} where one is 1 and the others 0"
        )
    return ONE_HOT[yes[0]]


def _word(value: object) -> str:
    """Spell a label: without capitals and outer white space, a whole number without `.0`."""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) > LARGEST):
        return ""
    word = str(value).strip().casefold()
    number = WHOLE_NUMBER.fullmatch(word)
    return number[1] if number else word
