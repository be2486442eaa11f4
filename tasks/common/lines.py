"""Rows of a JSONL file by number, for files larger than memory."""

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
    """The rows of a file that the pipeline wrote, read on access."""

    def __init__(self, path: Path) -> None:
        """Find the start of every row.

        Raises:
            InputError: the file is missing; on access, a row is damaged.
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
    """Rows in an unnamed temporary file, to be read by number."""

    def __enter__(self) -> Self:
        STATE.mkdir(parents=True, exist_ok=True)  # the system's folder for temporary files may be in memory
        self._file = tempfile.TemporaryFile(dir=STATE)
        self._sizes = array("q")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._sizes.append(self._file.write(json.dumps(row).encode()))

    def rows(self) -> Sequence[dict[str, Any]]:
        """Return the rows; call it after the last `add`."""
        return stretches(self._sizes, lambda *ends: _between(self._file, *ends), lambda _, text: dict(json.loads(text)))


def _between(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def group_by_key(rows: Iterable[tuple[bytes, Mapping[str, Any]]]) -> Iterator[Iterator[dict[str, Any]]]:
    """Group rows by key, in the order of each key's first row.

    The rows are in an unnamed temporary file in between. Read each group before asking for the next.

    Args:
        rows: each with its key; all keys have the same length.
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
