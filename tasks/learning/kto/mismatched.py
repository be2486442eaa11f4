"""Answers to other prompts: what the policy says of them tells how far it has moved from the reference in general."""

import hashlib
from array import array
from collections.abc import Sequence

from tasks.common.errors import InputError
from tasks.common.lazy import LazySequence
from tasks.data.encoding.tokens import Encoded


def mismatched(rows: Sequence[Encoded], context: int | None) -> LazySequence[Encoded]:
    """Give each prompt the answer of the next row with another prompt, in the order of the data.

    The order does not change with epochs, batches and processes, so the reference is asked once. An answer that exceeds
    the model's context of `context` tokens (None: any number) is cut.

    Raises:
        InputError: all rows have one prompt.
    """
    following = _next_other([_hash(row.prompt) for row in rows])

    def row(number: int) -> Encoded:
        prompt, answer = rows[number].prompt, rows[following[number]].completion
        return Encoded(prompt, answer if context is None else answer[: context - len(prompt)])

    return LazySequence(len(rows), row)


def _hash(prompt: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("q", prompt).tobytes(), digest_size=16).digest()


def _next_other(prompts: Sequence[bytes]) -> list[int]:
    """For each row the next one, around the end, whose prompt differs."""
    first = next((number for number, prompt in enumerate(prompts) if prompt != prompts[0]), None)
    if first is None:
        raise InputError("all ratings are of one prompt, but KTO compares with answers to others: add other prompts")
    found = [first if prompts[-1] == prompts[0] else 0] * len(prompts)  # right for the last row
    for number in reversed(range(len(prompts) - 1)):
        behind = number + 1
        found[number] = behind if prompts[behind] != prompts[number] else found[behind]
    return found
