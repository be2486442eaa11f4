"""Sequences whose items are made when they are asked for: the one way in which rows on disk have numbers."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TypeVar, overload

import numpy as np

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Raw = TypeVar("Raw")


class LazySequence(Sequence[Item_co]):
    """A number of items, none of which is held: what they are made from may lie on disk and be larger than memory."""

    def __init__(self, count: int, make: Callable[[int], Item_co]) -> None:
        """Have `make` give the item of a number from 0 to `count` - 1, the same one whenever it is asked."""
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
    """Give what lies end to end in a file or an array as a sequence; 8 bytes an item are held.

    Args:
        sizes: of the items, in the unit of the file (bytes) or of the array (entries).
        read: gives what lies between a start and an end.
        make: gives an item by its number, from 0, and what was read.
    """
    ends = np.cumsum(np.fromiter(sizes, np.int64))

    def item(number: int) -> Item:
        return make(number, read(int(ends[number - 1]) if number else 0, int(ends[number])))

    return LazySequence(len(ends), item)


def end_to_end(parts: Sequence[Sequence[Item]]) -> LazySequence[Item]:
    """Give several sequences as one, the items of the first before those of the second."""
    starts = list(accumulate(map(len, parts), initial=0))

    def item(number: int) -> Item:
        part = bisect_right(starts, number) - 1
        return parts[part][number - starts[part]]

    return LazySequence(starts[-1], item)
