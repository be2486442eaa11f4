"""Rows of a JSONL file by their number, for what is larger than memory."""

from array import array
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from tasks.data.files import parse_row, read_jsonl, require_file
from tasks.data.lazy import LazySequence


class Lines(LazySequence[dict[str, Any]]):
    """The rows of a file that the pipeline wrote, each read when it is asked for: 8 bytes a row are held."""

    def __init__(self, path: Path) -> None:
        """Find out where the rows begin.

        Raises:
            InputError: the file is missing; when a row is read, that it is damaged.
        """
        require_file(path)
        with path.open("rb") as file:
            starts = array("q", accumulate(map(len, file), initial=0))

        def row(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek(starts[number])
                return parse_row(path, number + 1, file.readline())

        super().__init__(len(starts) - 1, row)
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_jsonl(self.path)
