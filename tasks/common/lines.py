"""Rows of a JSONL file by their number, for what is larger than memory."""

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tasks.common.files import STATE, parse_row, read_jsonl, require_file
from tasks.common.lazy import LazySequence


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


class Spool:
    """Rows put aside in a file without a name, to be read again by their number: 8 bytes a row are held."""

    def __enter__(self) -> Self:
        STATE.mkdir(parents=True, exist_ok=True)  # not the system's place for such files, which may be in memory
        self._file = tempfile.TemporaryFile(dir=STATE)
        self._starts = array("q")
        self._end = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a row aside, behind the others; all of them before the first is read."""
        self._starts.append(self._end)
        self._end += self._file.write(json.dumps(row).encode() + b"\n")

    def __getitem__(self, number: int) -> dict[str, Any]:
        self._file.seek(self._starts[number])
        row: dict[str, Any] = json.loads(self._file.readline())
        return row


def alike(rows: Iterable[tuple[bytes, Mapping[str, Any]]]) -> Iterator[Iterator[dict[str, Any]]]:
    """Give the rows of one key together, in the order of each key's first row.

    All rows lie in a file without a name meanwhile. Each group is to be read before the next is asked for.

    Args:
        rows: each with its key, all of one length.
    """
    keys, length = bytearray(), 1
    with Spool() as spool:
        for key, row in rows:
            keys += key
            length = len(key)
            spool.add(row)
        _, first, inverse = np.unique(np.frombuffer(keys, f"S{length}"), return_index=True, return_inverse=True)
        firsts = first[inverse]
        for _, places in groupby(np.argsort(firsts, kind="stable").tolist(), key=firsts.__getitem__):
            yield (spool[place] for place in places)
