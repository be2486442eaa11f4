"""Rows that say what another row says: copies, contradictions, and prompts that leave their split."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from tasks.data.checks.contamination import Question, Study, find_contamination
from tasks.data.checks.schema import Row, texts, tidy
from tasks.data.records import ANSWERS, Kind, Message

Rows = Mapping[Kind, Sequence[Row]]
Findings = list[str | None]
# A prompt in two splits stays in the one that is held out the longest.
_PROTECTION = {"train": 0, "validation": 1, "test": 2}


def copies(rows: Sequence[Row]) -> Findings:
    """For each row, the place of an earlier row with the same content, or None."""
    first: dict[bytes, str] = {}
    found: Findings = []
    for row in rows:
        key = None if row.fault else _content_key(row)
        found.append(first.get(key) if key else None)
        if key:
            first.setdefault(key, row.place)
    return found


def contradictions(pairs: Sequence[Row]) -> Findings:
    """For each preference pair, the place of a pair that labels the same two answers the other way round, or None."""
    first: dict[tuple[bytes, str, str], str] = {}
    keys = [None if pair.fault else _pair_key(pair) for pair in pairs]
    for key, pair in zip(keys, pairs, strict=True):
        if key:
            first.setdefault(key, pair.place)
    return [first.get((key[0], key[2], key[1])) if key and key[1] != key[2] else None for key in keys]


def shared_prompts(rows: Rows) -> dict[Kind, Findings]:
    """For each row, the place of a row of a more protected split that opens with the same prompt, or None.

    The three files are looked at together: the policy must not train on a prompt that any of them holds out.
    """
    keeper: dict[bytes, Row] = {}
    keys = {kind: [None if row.fault else _root_key(row.prompt) for row in rows[kind]] for kind in rows}
    for kind in rows:
        for key, row in zip(keys[kind], rows[kind], strict=True):
            if key and _protection(row) > _protection(keeper.get(key)):
                keeper[key] = row
    return {
        kind: [
            _kept_elsewhere(row, keeper.get(key)) if key else None
            for key, row in zip(keys[kind], rows[kind], strict=True)
        ]
        for kind in rows
    }


def contamination(rows: Rows) -> dict[Kind, Findings]:
    """For each training row, the place of a test prompt that it gives away, or None."""
    sound = [(kind, index, row) for kind in rows for index, row in enumerate(rows[kind]) if not row.fault]
    questions = [Question(row.place, _asked(row.prompt)) for _, _, row in sound if row.split == "test"]
    studied = [(kind, index, row) for kind, index, row in sound if row.split == "train"]
    places = find_contamination(
        questions, [Study(_asked(row.prompt), list(texts(row.record))) for _, _, row in studied]
    )
    found: dict[Kind, Findings] = {kind: [None] * len(rows[kind]) for kind in rows}
    for (kind, index, _), place in zip(studied, places, strict=True):
        found[kind][index] = place
    return found


def _content_key(row: Row) -> bytes:
    answers = [row.record[name] for names in ANSWERS.values() for name in names if name in row.record]
    return _digest(_tidied(row.prompt), [tidy(text) for text in (*answers, *row.record.get("references", []))])


def _pair_key(pair: Row) -> tuple[bytes, str, str]:
    return _digest(_tidied(pair.prompt)), tidy(pair.record["chosen"]), tidy(pair.record["rejected"])


def _root_key(prompt: Sequence[Message]) -> bytes:
    """A prompt's opening: its messages up to the first of the user, by which rows are split."""
    first = next(index for index, message in enumerate(prompt) if message["role"] == "user")
    return _digest(_tidied(prompt[: first + 1]))


def _tidied(prompt: Sequence[Message]) -> list[list[str]]:
    return [[message["role"], tidy(message["content"])] for message in prompt]


def _digest(*content: object) -> bytes:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()


def _protection(row: Row | None) -> int:
    return _PROTECTION[row.split] if row else -1


def _kept_elsewhere(row: Row, keeper: Row | None) -> str | None:
    return f"{keeper.place} ({keeper.split})" if keeper and keeper.split != row.split else None


def _asked(prompt: Sequence[Message]) -> list[str]:
    return [message["content"] for message in prompt if message["role"] == "user"]
