"""Rows in tokens, written in the chat template as the trainers will see them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from tasks.data.checks.schema import Row
from tasks.data.files import read_json
from tasks.data.records import ANSWERS, Kind
from tasks.data.tokens import encode, encode_prompt
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


def measure(
    kind: Kind, rows: Sequence[Row], controls: Sequence[str | None], tokenizer: "PreTrainedTokenizerBase", file: Path
) -> list[Lengths | None]:
    """Measure every row in tokens; None for a row whose shape is wrong, or whose control tokens cannot be encoded.

    Args:
        kind: the kind of the rows.
        rows: all rows of a file.
        controls: the control tokens found in each row.
        tokenizer: of the base model.
        file: where the rows stand, for messages.

    Raises:
        InputError: the chat template refuses a row; names file and row.
    """
    numbered = enumerate(zip(rows, controls, strict=True), start=1)
    progress = tqdm(numbered, desc=f"tokens of {kind}", total=len(rows), mininterval=10, disable=None, leave=False)
    lengths: list[Lengths | None] = []
    for number, (row, control) in progress:
        try:
            lengths.append(None if row.fault else _measured(kind, row, tokenizer))
        except InputError as error:
            if control is None:
                raise InputError(f"{file} row {number} ({row.place}): {error}") from None
            lengths.append(None)
    return lengths


def context_of(folder: Path) -> int | None:
    """The context of a model in tokens; None where it is unlimited."""
    written = read_json(folder / "config.json").get("max_position_embeddings")
    if isinstance(written, int):
        return written or None
    from transformers import AutoConfig  # it knows other names, and costs seconds

    return getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None) or None


def _measured(kind: Kind, row: Row, tokenizer: "PreTrainedTokenizerBase") -> Lengths:
    encoded = [encode(tokenizer, row.prompt, row.record[name]) for name in ANSWERS[kind]]
    prompt = len(encoded[0].prompt if encoded else encode_prompt(tokenizer, row.prompt))
    answers = tuple(len(each.completion) for each in encoded)
    difference = prompt + _shared(*(each.completion for each in encoded)) if kind == "preferences" else None
    return Lengths(prompt, answers, difference)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their start; `_NEVER` where all are."""
    if first == second:
        return _NEVER
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
