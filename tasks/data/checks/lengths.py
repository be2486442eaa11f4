"""Rows in tokens, written in the chat template as the trainers will see them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.common.errors import InputError
from tasks.data.checks.lost import Losses, Reader
from tasks.data.checks.schema import Row
from tasks.data.encoding.tokens import Parts, Text, Written, as_text, encode_written, write_texts
from tasks.data.records import Kind

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


class Measured(NamedTuple):
    """What becomes of a row in the chat template."""

    lengths: Lengths | None  # None where it cannot be encoded
    fault: str | None  # why it cannot
    losses: Losses


def measure(
    kind: Kind, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", reader: Reader
) -> list[Measured | None]:
    """Write rows in the chat template and measure them in tokens; None for a row whose shape is wrong."""
    texts = [as_text(kind, row.record) for row in rows if not row.fault]
    written = write_texts(tokenizer, texts)
    encoded = encode_written(tokenizer, written)
    measured = (_measured(*each, reader) for each in zip(texts, written, encoded, strict=True))
    return [None if row.fault else next(measured) for row in rows]


def _measured(text: Text, written: Written | InputError, encoded: Parts | InputError, reader: Reader) -> Measured:
    if isinstance(written, InputError):
        return Measured(None, str(written), {})
    losses = reader.losses(text.prompt, written.prompt, list(zip(text.responses, written.answers, strict=True)))
    if isinstance(encoded, InputError):
        return Measured(None, str(encoded), losses)
    prompt, *answers = encoded
    difference = len(prompt) + _shared(*answers) if len(answers) > 1 else None
    return Measured(Lengths(len(prompt), tuple(map(len, answers)), difference), None, losses)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their start; `_NEVER` where all are."""
    if first == second:
        return _NEVER
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
