"""Rows of token ids as tensors, and the order in which training meets them."""

import math
import random
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded, EncodedPair

Rows = TypeVar("Rows", bound=Sized)


def require_rows(rows: Rows, file: Path, split: str) -> Rows:
    """Give the rows back.

    Raises:
        InputError: there are none.
    """
    if not rows:
        cure = "give more rows, or raise its share in params.yaml, prepare.split"
        raise InputError(f"{file} has no row in the {split} split: {cure}")
    return rows


def evenly_spaced(count: int, most: int) -> list[int]:
    """Places of at most so many of `count` rows, at even distances."""
    taken = min(count, most)
    return [place * count // taken for place in range(taken)]


class Trees:
    """Where things lie in a packed row: of each prompt its beginning, its end, and the end of each of its completions.

    No bare list, for whose every other length torch would compile a layer anew.
    """

    def __init__(self, bounds: Sequence[Sequence[int]]) -> None:
        """Hold the bounds: at least three a prompt."""
        self.bounds = bounds


class Packing(NamedTuple):
    """Rows end to end in one long row of T tokens: each distinct prompt once, behind it the completions to it."""

    input_ids: Tensor  # (1, T) long
    position_ids: Tensor  # (1, T) long, counted in the token's own sequence
    places: Tensor  # (B, L) long: where each token of the rows lies among the T; 0 in the padding
    trees: Trees


class Batch(NamedTuple):
    """Rows of prompt and completion, padded on the right, and the same rows packed."""

    input_ids: Tensor  # (B, L) long
    attention_mask: Tensor  # (B, L) bool, True on the row's tokens
    completion_mask: Tensor  # (B, L) bool, True on the completion's tokens, its end-of-sequence token included
    packing: Packing
    rows: Sequence[Encoded]

    def take(self, numbers: Sequence[int]) -> "Batch":
        """Give some of the rows, without the columns that are padding in all of them."""
        return collate([self.rows[number] for number in numbers], self.input_ids.device)


def collate(rows: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
    """Lay rows side by side, padded on the right to the longest, and end to end.

    Masks follow positions, never ids, so what stands in the padding does not matter: it is 0.
    """
    length = max(row.length for row in rows)
    padded = [[*row.prompt, *row.completion, *[0] * (length - row.length)] for row in rows]
    position = torch.arange(length, device=device)
    starts = placed([[len(row.prompt)] for row in rows], device)
    ends = placed([[row.length] for row in rows], device)
    attention_mask = position < ends
    completion_mask = attention_mask & (position >= starts)
    input_ids, packing = placed(padded, device), pack(rows, length, device)
    return Batch(input_ids, attention_mask, completion_mask, packing, rows)


def placed(values: Any, device: torch.device | str) -> Tensor:  # noqa: ANN401  nested lists of numbers
    """Make a tensor on a device; on a GPU by way of pinned memory, so that nobody waits for the copy."""
    if torch.device(device).type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values).pin_memory().to(device, non_blocking=True)


def pack(rows: Sequence[Encoded], length: int, device: torch.device | str) -> Packing:
    """Lay rows end to end; rows with the same prompt share it. `length` is L, that of the longest row."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        by_prompt.setdefault(tuple(row.prompt), []).append(number)
    ids: list[int] = []
    position_ids: list[int] = []
    places: list[list[int]] = [[] for _ in rows]
    trees = []
    for prompt, numbers in by_prompt.items():
        start, end = len(ids), len(ids) + len(prompt)
        ids += prompt
        position_ids += range(len(prompt))
        bounds = [start, end]
        for number in numbers:
            row = rows[number]
            places[number] = [*range(start, end), *range(len(ids), len(ids) + len(row.completion))]
            places[number] += [0] * (length - row.length)
            ids += row.completion
            position_ids += range(len(prompt), row.length)
            bounds.append(len(ids))
        trees.append(bounds)
    input_ids, positions_in_rows = placed([[ids], [position_ids]], device)
    return Packing(input_ids, positions_in_rows, placed(places, device), Trees(trees))


def collate_pairs(pairs: Sequence[EncodedPair], device: torch.device | str = "cpu") -> Batch:
    """Lay the chosen rows of N pairs above their rejected rows, in one batch of 2N rows."""
    return collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], device)


def positions(attention_mask: Tensor) -> Tensor:
    """Position of every token in its own row, (B, L) -> (B, L) long, whichever side the padding is on."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """Shuffle `count` rows for one epoch: a pure function of its arguments, so resuming needs no stored generator."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def steps_in(count: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps in `epochs` passes over `count` rows; the last batch of a pass may be smaller."""
    return math.ceil(count / batch_size) * epochs


def training_batches(
    count: int, batch_size: int, epochs: int, seed: int, done: int = 0
) -> Iterator[tuple[int, list[int]]]:
    """Give the number of every step from `done` + 1 on, and the indices of its rows.

    Every row is met once an epoch. The batch of a step depends on nothing but the arguments.
    """
    step = 0
    for epoch in range(epochs):
        order = epoch_order(count, epoch, seed)
        for start in range(0, count, batch_size):
            step += 1
            if step > done:
                yield step, order[start : start + batch_size]


def micro_batches(indices: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Split the items of one step into groups of similar length, each of at most `tokens` tokens if it were padded.

    An item that is longer than that is a group of its own.
    """
    group: list[int] = []
    for index in sorted(indices, key=lengths.__getitem__):  # stable: items of one length keep their order
        if group and (len(group) + 1) * lengths[index] > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
