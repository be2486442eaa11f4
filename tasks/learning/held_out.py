"""Rows to measure a model on, shared among the processes: each has its batches, and sums are added up."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from tasks.common.lazy import LazySequence
from tasks.common.progress import track
from tasks.data.encoding.tokens import Encoded, EncodedPair
from tasks.learning import processes
from tasks.learning.batches import Batch, collate, collate_pairs
from tasks.learning.processes import MicroBatch

Row = TypeVar("Row")


class HeldOut(NamedTuple):
    """This process's batches of some rows, each laid out when it is its turn."""

    batches: LazySequence[Batch]
    groups: Sequence[MicroBatch]  # the places of each batch's rows; weight 0: it only keeps processes in step

    def tracked(self, title: str) -> Iterator[tuple[Batch, MicroBatch]]:
        """Yield each batch and the places of its rows under a progress bar."""
        return zip(track(self.batches, title, "batch"), self.groups, strict=True)


def row_batches(rows: Sequence[Encoded], tokens: int, device: torch.device) -> HeldOut:
    """Every row once, in batches of at most `tokens` tokens."""
    return _held_out(rows, [row.length for row in rows], partial(collate, device=device), tokens)


def pair_batches(pairs: Sequence[EncodedPair], tokens: int, device: torch.device) -> HeldOut:
    """Every pair once, in batches of at most `tokens` tokens."""
    return _held_out(pairs, [2 * pair.length for pair in pairs], partial(collate_pairs, device=device), tokens)


def _held_out(
    rows: Sequence[Row], lengths: Sequence[int], lay_out: Callable[[Sequence[Row]], Batch], tokens: int
) -> HeldOut:
    groups = processes.groups_of_rank(lengths, tokens)
    batches = LazySequence(len(groups), lambda number: lay_out([rows[place] for place in groups[number].items]))
    return HeldOut(batches, groups)
