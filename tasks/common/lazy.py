"""A sequence whose items are made when they are asked for."""

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

Item_co = TypeVar("Item_co", covariant=True)


class LazySequence(Sequence[Item_co]):
    """So many items, of which none is kept: what they are made from may lie on disk and be larger than memory."""

    def __init__(self, count: int, make: Callable[[int], Item_co]) -> None:
        """Have `make` give the item of a number from 0 to `count` - 1, the same one whenever it is asked."""
        self._numbers, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Item_co: ...
    @overload
    def __getitem__(self, place: slice) -> "LazySequence[Item_co]": ...
    def __getitem__(self, place: int | slice) -> "Item_co | LazySequence[Item_co]":
        if isinstance(place, slice):
            numbers = self._numbers[place]
            return LazySequence(len(numbers), lambda number: self._make(numbers[number]))
        return self._make(self._numbers[place])
