"""Rows of text files: JSONL, JSON and CSV. A row that cannot be read is recorded, and the others are read."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError, quoted
from tasks.common.strict_json import MAC_CURE, MAC_FAULT, JsonError, parse_json
from tasks.data.sources.layouts import refuse_layout
from tasks.data.sources.raw_rows import FIX, LONGEST_ROW, BadRows, RawRow

# Python's own limit is 128 KiB a field; this is the largest value every platform takes.
LONGEST_CSV_FIELD = 2**31 - 1
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
NO_OBJECT = "is not an object with named columns"
OBJECT_CURE = "write it as {column: value, ...}"


def text_lines(path: Path, longest: int | None = LONGEST_ROW) -> Iterator[str]:
    """Decode line by line, and break at line feeds only: U+2028 and its like belong to the text.

    Raises:
        InputError: the file is none, a line is not UTF-8 or has more than `longest` bytes.
    """
    for number, line, offset in _byte_lines(path, longest):
        try:
            yield _decoded(number, line, offset)
        except _NotUtf8Error as error:
            raise InputError(f"{path} row {number} {error}: {_NotUtf8Error.cure}") from None


def jsonl_rows(path: Path, bad: BadRows) -> Iterator[RawRow]:
    """Read one object a line."""
    for number, line, offset in _byte_lines(path, LONGEST_ROW):
        try:
            text = _decoded(number, line, offset)
            fields = parse_json(text) if text.strip() else None
        except (_NotUtf8Error, JsonError) as fault:
            if line.startswith(UTF16_MARKS):  # all of the file is
                raise InputError(f"{path} row {number} {fault}: {fault.cure}") from None
            if number == 1 and line.strip() in (b"[", b"{"):
                raise InputError(f"{path} holds JSON over several lines: rename it to .json") from None
            bad.add(number, str(fault), fault.cure or FIX)
            continue
        if number == 1:
            refuse_layout(fields, path)
        if isinstance(fields, dict):
            yield RawRow(number, fields)
        elif text.strip():
            bad.add(number, NO_OBJECT, OBJECT_CURE)


def json_rows(path: Path, bad: BadRows) -> Iterator[RawRow]:
    """Read a list of objects, or an object with one list of them.

    Raises:
        InputError: it is neither, or no JSON, or does not fit into memory.
    """
    try:
        text = "".join(text_lines(path, longest=None))
        content = parse_json(text) if text.strip() else []
    except MemoryError:
        raise InputError(f"{path} is too large to be read whole: write it as .jsonl, one object a line") from None
    except JsonError as fault:
        cure = "if it holds one object a line, rename it to .jsonl" if fault.goes_on else "fix it"
        line = f" line {fault.line}" if fault.line else ""
        raise InputError(f"{path}{line} {fault}: {fault.cure or cure}") from None
    refuse_layout(content, path)
    for number, fields in enumerate(_only_list(content, path), start=1):
        if isinstance(fields, dict):
            yield RawRow(number, fields)
        else:
            bad.add(number, NO_OBJECT, OBJECT_CURE)


def csv_rows(path: Path, bad: BadRows) -> Iterator[RawRow]:
    """Read the records of a table with a header.

    Raises:
        InputError: the header names a column twice, or the columns are not separated by commas.
    """
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(text_lines(path), strict=True)
    header: list[str] = []
    row = 0
    try:
        for row, record in enumerate(reader, start=1):
            if not header:
                header = _header(record, path)
            elif len(record) == len(header):
                yield RawRow(row, dict(zip(header, record, strict=True)))
            elif record:
                bad.add(
                    f"{row} (line {reader.line_num})",
                    f"has {len(record)} fields where the header has {len(header)}",
                    "put fields that hold commas or quotes in double quotes",
                )
    except csv.Error as error:  # where the next row begins is not known
        numbered = f"{row + 1} (line {reader.line_num})"
        if "new-line character" not in str(error):
            bad.add(numbered, f"is not valid CSV ({error})", "fix its quotes")
        elif next(text_lines(path)).endswith("\n"):  # which pandas does not put in quotes
            bad.add(
                numbered, r"holds \r outside of quotes", "write all fields in quotes, as to_csv(quoting=csv.QUOTE_ALL)"
            )
        else:
            bad.add(numbered, MAC_FAULT, MAC_CURE)


def _header(record: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in record if record.count(name) > 1})
    if twice:
        raise InputError(f"{path} row 1 names the column {quoted(twice[0])} twice: rename one")
    if len(record) == 1 and re.search(r"[;\t|]", record[0]):
        raise InputError(f"{path} row 1 has one column, {quoted(record[0])}: separate the columns by commas")
    return record


def _only_list(content: object, path: Path) -> list[Any]:
    if isinstance(content, list):
        return content
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) != 1:
        raise InputError(f"{path} is neither a list of objects nor an object with one list: write it as a list")
    return lists[0]


class _NotUtf8Error(ValueError):
    """A line that is not UTF-8."""

    cure = "save the file as UTF-8"


def _byte_lines(path: Path, longest: int | None) -> Iterator[tuple[int, bytes, int]]:
    """Give each line with its number and the bytes of the file before it."""
    if path.exists() and not path.is_file() and not path.is_dir():  # to open a pipe would be to wait for a writer
        raise InputError(f"{path} is a pipe, socket or device: write its rows to a file")
    offset, number = 0, 0
    with path.open("rb") as file:
        while line := file.readline(-1 if longest is None else longest + 1):
            number += 1
            if longest is not None and len(line) > longest:
                raise InputError(
                    f"{path} row {number} has more than {longest >> 20} MiB: give each row a line of its own, and what "
                    "is larger no place in it"
                )
            yield number, line, offset
            offset += len(line)


def _decoded(number: int, line: bytes, offset: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        # A byte order mark is cut off before the decoder counts.
        byte = offset + error.start + len(line) - len(error.object)
        raise _NotUtf8Error(f"is not UTF-8 text (byte {byte} of the file)") from None
