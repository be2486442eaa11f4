"""Sequences whose items are created on access: how rows on disk are indexed."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TypeVar, overload

import numpy as np

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Raw = TypeVar("Raw")


class LazySequence(Sequence[Item_co]):
    """Items that are created on access and not cached: their source may be on disk and larger than memory."""

    def __init__(self, count: int, make: Callable[[int], Item_co]) -> None:
        """Create item i, from 0 to `count` - 1, by `make(i)`, which must return equal items for the same i."""
        self._numbers, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Item_co: ...
    @overload
    def __getitem__(self, index: slice) -> "LazySequence[Item_co]": ...
    def __getitem__(self, index: int | slice) -> "Item_co | LazySequence[Item_co]":
        if isinstance(index, slice):
            numbers = self._numbers[index]
            return LazySequence(len(numbers), lambda number: self._make(numbers[number]))
        return self._make(self._numbers[index])


def stretches(
    sizes: Iterable[int], read: Callable[[int, int], Raw], make: Callable[[int, Raw], Item]
) -> LazySequence[Item]:
    """Return consecutive stretches of a file or an array as a sequence; 8 bytes per item are in memory.

    Args:
        sizes: sizes of the items, in bytes of the file or entries of the array.
        read: returns what is between a start and an end.
        make: creates an item from its number, from 0, and what was read.
    """
    ends = np.cumsum(np.fromiter(sizes, np.int64))

    def item(number: int) -> Item:
        return make(number, read(int(ends[number - 1]) if number else 0, int(ends[number])))

    return LazySequence(len(ends), item)


def end_to_end(parts: Sequence[Sequence[Item]]) -> LazySequence[Item]:
    """Concatenate sequences, without copying."""
    starts = list(accumulate(map(len, parts), initial=0))

    def item(number: int) -> Item:
        part = bisect_right(starts, number) - 1
        return parts[part][number - starts[part]]

    return LazySequence(starts[-1], item)
