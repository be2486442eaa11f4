"""Whether the option that an answer states last is the expected one.

In this order: what the last box holds, what follows the last "answer", a letter that the answer begins with, the letter
in its last line with one, the text of an option. Two letters at that place are no statement.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import key_texts, score_by_key

READ = 20_000  # characters, from the end


def multiple_choice(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    columns: Sequence[Mapping[str, Any]],
    *,
    column: str | None = None,
    options: str | None = None,
    letters: Annotated[str, Field(pattern="^[A-Z]{2,26}$")] = "ABCD",
    otherwise: float | None = None,
) -> list[float]:
    """Score n answers: 1 where the stated option is right, else 0.

    Args:
        answers: the texts.
        references: the right letter, or a text that states it, unless a column has it.
        columns: the rows' extra columns.
        column: the one that holds the right letter, or the right option's text.
        options: the column that holds the texts of the options, in their order, for answers that give a text.
        letters: that stand for the options.
        otherwise: the score for rows without an expected option.

    Raises:
        InputError: a row has no expected option, and `otherwise` is not set; or what is expected is no option.
    """

    def score(answer: str, key: Any, row: Mapping[str, Any]) -> float:  # noqa: ANN401 - whatever a row holds
        texts = _options(row, options, letters)
        expected = {_stated(text, letters, texts) for text in key_texts(key)}
        if None in expected:
            raise InputError(f"what is expected, {quoted(key)}, is no option ({', '.join(letters)}): correct it")
        return float(_stated(answer[-READ:], letters, texts) in expected)

    return score_by_key(score, answers, references, columns, column=column, otherwise=otherwise)


def _options(row: Mapping[str, Any], column: str | None, letters: str) -> list[str]:
    """The texts of a row's options."""
    found = row.get(column, []) if column else []
    if not isinstance(found, list) or len(found) > len(letters):
        raise InputError(f"{quoted(column)} holds {quoted(found)}, no list of {len(letters)} texts at most: correct it")
    return [_plain(str(each)) for each in found]


def _stated(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a text states."""
    text = unicodedata.normalize("NFKC", text)
    if alone := re.fullmatch(rf"\W*([{letters}{letters.lower()}])\W*", text):
        return alone[1].upper()
    for segment in _segments(text):
        found = _letters(segment, letters)
        if found:
            return found.pop() if len(found) == 1 else None
        if by_text := _by_text(segment, letters, options):
            return by_text
    lines = _without_listing(text.splitlines(), letters)
    if at_start := re.match(rf"\W*([{letters}])[).:]", lines[0] if lines else ""):
        return at_start[1]
    for line in reversed(lines):
        if names := set(re.findall(rf"(?<![\w'])([{letters}])(?![\w'])(?! [a-z])", line)):
            return str(names.pop()) if len(names) == 1 else None
    return _by_text(text, letters, options)


def _segments(text: str) -> list[str]:
    """What stands where answers state themselves: in the last box, and after the last "answer"."""
    boxes = re.findall(r"\\boxed\{(?:\\text\w*\{)?([^{}]*)\}", text)
    answers = [found.end() for found in re.finditer(r"\banswer\b", text, re.IGNORECASE)]
    rest = text[answers[-1] :].partition("\n")[0] if answers else ""
    return [*boxes[-1:], re.sub(r"^\s+(?:is|would be|must be)\b(?:\s+option\b)?", "", rest)]


def _letters(segment: str, letters: str) -> set[str]:
    """The letters that a statement begins with: one, or several joined by commas, "or" and the like."""
    letter = rf"[\W_]*\b([{letters}{letters.lower()}])\b(?!')"
    found = re.match(rf"{letter}(?:\W*(?:\b(?:or|and)\b)?{letter})*", segment)
    if not found or re.match(r"\W*a\s+\w", segment):  # an article
        return set()
    return {each.upper() for each in re.findall(rf"\b([{letters}{letters.lower()}])\b", found[0])}


def _without_listing(lines: Sequence[str], letters: str) -> list[str]:
    """Leave out lines that only list the options, as a prompt does: two or more that begin with different letters."""
    starts = [re.match(rf"\W*([{letters}])[).:]", line) for line in lines]
    if len({start[1] for start in starts if start}) < 2:
        return [line for line in lines if line.strip()]
    return [line for line, start in zip(lines, starts, strict=True) if line.strip() and not start]


def _by_text(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The option whose text alone stands in a text."""
    plain = f" {_plain(text)} "
    found = [letter for letter, option in zip(letters, options, strict=False) if option and f" {option} " in plain]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    """Words alone, in lower case."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
