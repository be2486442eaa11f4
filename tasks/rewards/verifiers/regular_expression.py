"""Whether an answer matches a regular expression; the search ends after a time, whatever the expression."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import regex
from pydantic import Field

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import score_by_key

Flag = Literal["ignore_case", "multiline", "dot_all"]
FLAGS = {"ignore_case": regex.IGNORECASE, "multiline": regex.MULTILINE, "dot_all": regex.DOTALL}


def regular_expression(
    answers: Sequence[str],
    columns: Sequence[Mapping[str, Any]],
    *,
    pattern: str | None = None,
    column: str | None = None,
    whole: bool = False,
    wanted: bool = True,
    flags: list[Flag] = [],  # noqa: B006 - read only
    seconds: Annotated[float, Field(gt=0)] = 1.0,
    otherwise: float | None = None,
) -> list[float]:
    """Score n answers: 1 where they match, else 0. An empty answer matches nothing, wanted or not.

    Args:
        answers: the texts.
        columns: the rows' extra columns.
        pattern: the expression, in the syntax of `regex`, which extends that of `re`.
        column: in place of a pattern, the column that holds each row's own.
        whole: whether the answer must match from beginning to end, or somewhere.
        wanted: whether a match, or none, is right.
        flags: of the expression.
        seconds: after which the search is given up; the answer then scores 0.
        otherwise: the score for rows without an expression.

    Raises:
        InputError: there is no expression, or it is none; or there is one in both places.
    """
    if (pattern is None) == (column is None):
        raise InputError("it needs one of pattern and column: correct its options")

    def score(answer: str, expression: Any, _: object) -> float:  # noqa: ANN401 - whatever a row holds
        compiled = _compiled(expression, flags)
        try:
            found = (compiled.fullmatch if whole else compiled.search)(answer, timeout=seconds)
        except TimeoutError:
            return 0.0
        return float(bool(answer.strip()) and (found is not None) == wanted)

    if column is None:
        return [score(answer, pattern, None) for answer in answers]
    return score_by_key(score, answers, [()] * len(answers), columns, column=column, otherwise=otherwise)


def _compiled(expression: object, flags: Sequence[Flag]) -> Any:  # noqa: ANN401 - regex has no types
    if not isinstance(expression, str):
        raise InputError(f"{quoted(expression)} is no regular expression: correct it")
    try:
        return regex.compile(expression, sum({FLAGS[flag] for flag in flags}))
    except regex.error as error:
        raise InputError(f"{quoted(expression)} is no regular expression ({error}): correct it") from None
