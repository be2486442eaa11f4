"""Rows of JSON, one a line, by their number: for what is larger than memory."""

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from tasks.common.files import STATE, parse_row, read_jsonl, require_file
from tasks.common.lazy import LazySequence, stretches


class Lines(LazySequence[dict[str, Any]]):
    """The rows of a file that the pipeline wrote, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Find out where the rows begin.

        Raises:
            InputError: the file is missing; when a row is read, that it is damaged.
        """
        require_file(path)
        with path.open("rb") as file:
            rows = stretches(map(len, file), self._read, lambda number, line: parse_row(path, number + 1, line))
        super().__init__(len(rows), rows.__getitem__)
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_jsonl(self.path)

    def _read(self, start: int, end: int) -> bytes:
        with self.path.open("rb") as file:
            return _between(file, start, end)


class Spool:
    """Rows put aside in a file without a name, to be read again by their number."""

    def __enter__(self) -> Self:
        STATE.mkdir(parents=True, exist_ok=True)  # not the system's folder for such files, which may be in memory
        self._file = tempfile.TemporaryFile(dir=STATE)
        self._sizes = array("q")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a row aside, behind the others."""
        self._sizes.append(self._file.write(json.dumps(row).encode()))

    def rows(self) -> Sequence[dict[str, Any]]:
        """Give the rows, once all are there."""
        return stretches(self._sizes, lambda *ends: _between(self._file, *ends), lambda _, text: dict(json.loads(text)))


def _between(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


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
        firsts, spooled = first[inverse], spool.rows()
        for _, numbers in groupby(np.argsort(firsts, kind="stable").tolist(), key=firsts.__getitem__):
            yield (spooled[number] for number in numbers)
