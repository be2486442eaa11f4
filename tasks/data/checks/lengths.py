"""Rows in tokens, written in the chat template as the trainers will see them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.data.checks.schema import Row
from tasks.data.files import read_json
from tasks.data.records import ANSWERS, Kind
from tasks.data.tokens import Parts, Text, encode_texts
from tasks.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where two answers of the same tokens differ: behind any context. (The data docs cannot show infinity.)
_NEVER = 10**9


class Lengths(NamedTuple):
    """A row in tokens."""

    prompt: int
    answers: tuple[int, ...]
    first_difference: int | None  # tokens that the two sequences share from their start; None for one answer

    @property
    def longest(self) -> int:
        """Prompt and longer answer together."""
        return self.prompt + max(self.answers, default=0)


def measure(kind: Kind, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> list[Lengths | InputError | None]:
    """Measure rows in tokens; None for a row whose shape is wrong, the error for one that cannot be encoded."""
    texts = [Text(row.prompt, [row.record[name] for name in ANSWERS[kind]]) for row in rows if not row.fault]
    encoded = iter(encode_texts(tokenizer, texts))
    return [None if row.fault else _lengths(next(encoded)) for row in rows]


def context_of(folder: Path) -> int | None:
    """The context of a model in tokens; None where it is unlimited."""
    written = read_json(folder / "config.json").get("max_position_embeddings")
    if isinstance(written, int):
        return written or None
    from transformers import AutoConfig  # it knows other names, and costs seconds

    return getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None) or None


def _lengths(parts: Parts | InputError) -> Lengths | InputError:
    if isinstance(parts, InputError):
        return parts
    prompt, *answers = parts
    difference = len(prompt) + _shared(*answers) if len(answers) > 1 else None
    return Lengths(len(prompt), tuple(map(len, answers)), difference)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their start; `_NEVER` where all are."""
    if first == second:
        return _NEVER
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
