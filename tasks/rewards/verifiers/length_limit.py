"""Whether an answer's length is within limits, or how far it exceeds them: a term to add to another reward."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from tasks.common.errors import InputError

Length = Annotated[int, Field(ge=0)]


def length_limit(
    answers: Sequence[str],
    answer_ids: Sequence[Sequence[int]],
    *,
    longest: Length,
    shortest: Length = 0,
    margin: Length = 0,
    unit: Literal["words", "tokens", "characters"] = "words",
    form: Literal["within", "penalty"] = "within",
) -> list[float]:
    """Score n answers by their length.

    Args:
        answers: the texts.
        answer_ids: their tokens, the one that ends an answer included.
        longest: the upper limit, included.
        shortest: the lower limit, included.
        margin: over so many units the score falls: with `within` from 1 to 0, beyond a limit; with `penalty` from 0 to
            -1, before `longest` (DAPO's soft overlong punishment: Yu et al. 2025, equation 13).
        unit: in which lengths are counted.
        form: 1 within the limits and 0 beyond, or 0 within and -1 beyond `longest`.

    Raises:
        InputError: the limits contradict each other.
    """
    if shortest > longest or (form == "penalty" and (shortest or margin > longest)):
        raise InputError(
            "its limits contradict each other; shortest may not exceed longest, and a penalty has no shortest and no "
            "margin above longest: correct its options"
        )
    lengths = [_length(text, ids, unit) for text, ids in zip(answers, answer_ids, strict=True)]
    if form == "penalty":
        return [-_share_beyond(length - (longest - margin), margin) for length in lengths]
    return [1.0 - _share_beyond(max(length - longest, shortest - length), margin) for length in lengths]


def _length(text: str, ids: Sequence[int], unit: str) -> int:
    return len(ids) if unit == "tokens" else len(text) if unit == "characters" else len(text.split())


def _share_beyond(excess: int, margin: int) -> float:
    """From 0 at a limit to 1 a margin beyond it."""
    return 0.0 if excess <= 0 else min(1.0, excess / margin) if margin else 1.0
