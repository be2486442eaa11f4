"""Rows that say what another row says: copies, contradictions, and prompts that leave their split.

Rows are compared by 128-bit hashes of what they say. The rows of all files are numbered through.
"""

import hashlib
import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.data.checks.schema import SPLITS, Row
from tasks.data.records import ANSWERS, PAIRS, Kind, tidy
from tasks.data.splits import prompt_root
from tasks.data.tool_calls import comparable, comparable_answer

HASH_BYTES = 16
NOTHING = bytes(HASH_BYTES)  # of a row whose shape is wrong
Hashes = npt.NDArray[np.bytes_]  # (N,) of HASH_BYTES each
Numbers = npt.NDArray[np.int64]  # (N,) of rows; -1 where there is none


class Key(NamedTuple):
    """What a row is compared by."""

    content: bytes
    swapped: bytes  # the content of the same pair or rating with the other label, where that differs
    opening: bytes  # of the prompt up to the first message of the user, by which rows are split


class Keys(NamedTuple):
    """The keys of N rows."""

    content: Hashes
    swapped: Hashes
    opening: Hashes


def key_of(kind: Kind, row: Row) -> Key:
    """Hash what a row says; nothing of a row whose shape is wrong."""
    if row.fault:
        return Key(NOTHING, NOTHING, NOTHING)
    prompt = [comparable(message) for message in row.prompt]
    root = prompt_root(row.prompt)
    texts = [comparable_answer(row.record[name]) for name in ANSWERS[kind]] or list(
        map(comparable_answer, row.record["references"])
    )
    content: list[object] = [*texts]
    opposite: list[object] | None = None
    if kind in PAIRS and texts[0] != texts[1]:
        opposite = content[::-1]
    elif kind == "ratings":
        content, opposite = ([*texts, label] for label in (row.record["desirable"], not row.record["desirable"]))
    return Key(
        content=_digest(kind, prompt, content),
        swapped=_digest(kind, prompt, opposite) if opposite else NOTHING,
        opening=_digest([[message["role"], tidy(message["content"])] for message in root]),
    )


def copies(keys: Keys) -> Numbers:
    """For each row, an earlier row of its kind with the same content."""
    numbers = np.arange(len(keys.content))
    found = _first(keys.content, keys.content, numbers)
    return np.where(found == numbers, -1, found)


def contradictions(keys: Keys) -> Numbers:
    """For each row, one that labels the same two answers, or the same answer, the other way round."""
    return _first(keys.swapped, keys.content, np.arange(len(keys.content)))


def shared_prompts(keys: Keys, splits: npt.NDArray[np.int8]) -> Numbers:
    """For each row, a row of a more protected split that opens with the same prompt.

    A prompt in two splits stays in the one that is held out the longest. The policy must not train on a prompt that any
    file holds out.

    Args:
        keys: of N rows.
        splits: (N,) their splits, as places in SPLITS; -1 where a row names none.
    """
    found = np.full(len(splits), -1)
    for protected in range(1, len(SPLITS)):  # the most protected comes last, and has the last word
        numbers = np.flatnonzero(splits == protected)
        first = _first(keys.opening, keys.opening[numbers], numbers)
        found = np.where((first >= 0) & (splits < protected), first, found)
    return found


def _first(wanted: Hashes, held: Hashes, numbers: Numbers) -> Numbers:
    """For each wanted hash, the first of the numbered rows that holds it."""
    values, places = np.unique(held, return_index=True)
    if not len(values):
        return np.full(len(wanted), -1)
    found = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return np.where((values[found] == wanted) & (wanted != NOTHING), numbers[places[found]], -1)


def _digest(*content: object) -> bytes:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=HASH_BYTES).digest()
