"""One pass over a file: what stands in each row, by itself, and what the row is to be compared by."""

import math
from array import array
from collections.abc import Collection, Iterator
from itertools import islice
from re import Pattern
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tasks.common.lines import Lines
from tasks.data.checks.lengths import Lengths, Measured, measure
from tasks.data.checks.lost import LOST_CHECKS, Reader
from tasks.data.checks.overlap import HASH_BYTES, Keys, key_of
from tasks.data.checks.patterns import control_pattern, control_tokens, encoding_damage, personal_data
from tasks.data.checks.schema import SPLITS, Row, inspect, texts
from tasks.data.records import ANSWERS, PAIRS, Kind, tidy
from tasks.data.tool_calls import answer_as_text, comparable_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 128
# Whose messages must say something: a blank system text is a common way to have none, and a tool may have no result.
SPEAKING = ("user", "assistant")
FOUND = ("schema", "encoding", "control_tokens", "personal_data")  # in the texts themselves
Findings = dict[int, str]  # by the number of the row in its file, from 0; rows without one are left out
Figures = dict[str, float | None]


class Looked(NamedTuple):
    """What was found in the N rows of a file: numbers and hashes, and no text but findings and equal answers."""

    is_sound: npt.NDArray[np.bool_]  # (N,) False where the shape of a row is wrong
    splits: npt.NDArray[np.int8]  # (N,) places in SPLITS; -1 where a row names none
    keys: Keys
    findings: dict[str, Findings]  # by column
    figures: dict[str, npt.NDArray[np.float64]]  # (N,) by column; NaN where there is none to test
    equal: Findings  # what both answers of a pair say


def look(
    kind: Kind, lines: Lines, tokenizer: "PreTrainedTokenizerBase", marks_of_reasoning: Collection[str] = ()
) -> Looked:
    """Look at every row of a file."""
    pattern = control_pattern(tokenizer, marks_of_reasoning)
    is_sound, splits = array("b"), array("b")
    keys = [bytearray() for _ in Keys._fields]
    findings: dict[str, Findings] = {name: {} for name in (*FOUND, "template", *LOST_CHECKS)}
    figures = {name: array("d") for name in _columns(kind)}
    equal: Findings = {}
    for number, (row, measured) in enumerate(_measured(kind, lines, tokenizer)):
        found = _found(row, pattern)
        if measured:
            found |= {"template": measured.fault, **measured.losses}
        lengths = measured.lengths if measured else None
        is_sound.append(not row.fault)
        splits.append(SPLITS.index(row.split) if row.split in SPLITS else -1)
        for column, key in zip(keys, key_of(kind, row), strict=True):
            column.extend(key)
        for name, finding in found.items():
            if finding:
                findings[name][number] = finding
        for name, value in (_sizes(kind, row) | _figures(kind, lengths)).items():
            figures[name].append(math.nan if value is None else value)
        if kind in PAIRS and (same := _same_answer(row)) is not None:
            equal[number] = same
    return Looked(
        np.array(is_sound, dtype=bool),
        np.array(splits, dtype=np.int8),
        Keys(*(np.frombuffer(column, f"S{HASH_BYTES}") for column in keys)),
        findings,
        {name: np.array(values) for name, values in figures.items()},
        equal,
    )


def _measured(kind: Kind, lines: Lines, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[Row, Measured | None]]:
    reader = Reader(tokenizer)
    progress = tqdm(lines, desc=f"validate {kind}", unit=" rows", mininterval=10, disable=None, leave=False)
    rows = (inspect(kind, record) for record in progress)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        yield from zip(some, measure(kind, some, tokenizer, reader), strict=True)


def _found(row: Row, pattern: Pattern[str]) -> dict[str, str | None]:
    written = list(texts(row.record))
    return {
        "schema": row.fault,
        "encoding": next(filter(None, map(encoding_damage, written)), None),
        "control_tokens": next(filter(None, (control_tokens(pattern, text) for text in written)), None),
        "personal_data": next(filter(None, map(personal_data, written)), None),
    }


def _columns(kind: Kind) -> list[str]:
    sizes = [f"{name}_characters" for name in _blankable(kind)]
    return [*sizes, *_figures(kind, None)]


def _figures(kind: Kind, lengths: Lengths | None) -> Figures:
    figures: Figures = {"tokens": lengths.longest if lengths else None}
    if kind in PAIRS:
        figures["first_difference"] = lengths.first_difference if lengths else None
        figures["longer_chosen"] = _longer_chosen(lengths) if lengths else None
    return figures


def _longer_chosen(row: Lengths) -> float | None:
    """1 where the longer answer was chosen, 0 where the shorter was, None for a tie."""
    chosen, rejected = row.answers
    return None if chosen == rejected else float(chosen > rejected)


def _blankable(kind: Kind) -> tuple[str, ...]:
    return ("prompt", *(ANSWERS[kind] or ("references",)))


def _sizes(kind: Kind, row: Row) -> Figures:
    return {f"{name}_characters": None if row.fault else _size(row, name) for name in _blankable(kind)}


def _size(row: Row, field: str) -> int | None:
    """Characters in the emptiest text of a field, white space around it aside; None where there is none to test."""
    if field == "prompt":
        field_texts = [
            message["content"] for message in row.prompt if message["role"] in SPEAKING and "tool_calls" not in message
        ]
    else:
        answers = row.record[field] if field == "references" else [row.record[field]]
        field_texts = list(map(answer_as_text, answers))
    return min((len(text.strip()) for text in field_texts), default=None)


def _same_answer(pair: Row) -> str | None:
    """What both answers say, without what no reader sees; None where they differ."""
    if pair.fault:
        return None
    chosen, rejected = (pair.record[name] for name in ANSWERS[PAIRS[0]])
    return tidy(answer_as_text(chosen)) if comparable_answer(chosen) == comparable_answer(rejected) else None
