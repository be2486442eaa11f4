"""Raw rows of a source, one at a time: JSONL, JSON, CSV and Parquet files, data sets of the Hugging Face hub, folders.

Nothing is interpreted here: a row is the object, record or table row as it stands. Row numbers are what a person finds
when opening the file: the line of a JSONL file, the row of a spreadsheet for CSV (the header is row 1), the position
from 1 elsewhere.
"""

import csv
import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError
from ruamel.yaml.error import YAMLError

from tasks.data.names import name_in_outputs
from tasks.errors import InputError
from tasks.params import Section, Source, parse_yaml

# Python's own limit is 128 KiB a field; this is the largest value every platform takes.
LONGEST_CSV_FIELD = 2**31 - 1
PARQUET_BATCH = 1024


class RawRow(NamedTuple):
    """A row as the source holds it."""

    row: int  # where a person finds it
    fields: dict[str, Any]


class HubPointer(Section):
    """A .yaml file that names one exact version of a data set on the Hugging Face hub."""

    # Always with its owner: a bare name could mean one of the library's file readers.
    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    # A branch or tag can move; only the full hash of a commit always means the same bytes.
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    split: str
    config: str | None = None


def files_of(source: Source) -> dict[str, Source]:
    """Take a folder apart: a source for each file in it, by its name in outputs; a file is a source already.

    A pointer of DVC's stands for the file that it tracks, which lies beside it or has to be pulled.

    Raises:
        InputError: the folder has no files, or may not be read.
    """
    name, folder = name_in_outputs(source.source), Path(source.source)
    try:
        found = [each for each in folder.iterdir() if not each.name.startswith(".")]
    except PermissionError:
        raise InputError(f"{folder} may not be read: grant read permission or run as its owner") from None
    except OSError:  # it is no folder; whatever else is wrong with it is told when it is read
        return {name: source}
    if not found:
        raise InputError(f"{folder} is an empty folder: put {', '.join(READERS)} files into it")
    files = sorted({each.with_suffix("") if each.suffix == ".dvc" else each for each in found})
    return {Path(name, file.name).as_posix(): source.model_copy(update={"source": file.as_posix()}) for file in files}


def check_file(path: Path) -> None:
    """Make sure that a source is a regular file that may be read, or a folder; its content is not looked at.

    Raises:
        InputError: it is missing, may not be read, is a pipe, or its name is none that outputs can hold.
    """
    try:
        str(path).encode()
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # to open a pipe would be to wait for whoever writes into it
            path.open("rb").close()
    except UnicodeEncodeError:
        raise InputError(f"the name {str(path)!a} is not UTF-8: rename the file") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: grant read permission or run as its owner") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(_cure_for_missing(path)) from None
    except OSError as error:  # a link to itself, a name that is too long
        raise InputError(f"{path} cannot be read ({error.strerror}): mend its name or link") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a pipe, socket or device: write its rows to a file")


def read_rows(source: Source) -> Iterator[RawRow]:
    """Read the rows of a file, or of the hub data set it points to.

    Raises:
        InputError: the source is missing, unreadable, empty, damaged, not UTF-8 or of an unknown kind.
    """
    path = Path(source.source)
    _check_readable(path)
    empty = True
    for row in READERS[path.suffix.lower()](path):
        empty = False
        yield row
    if empty:
        raise InputError(
            f"{path} holds no rows: fill it, or name another source in params.yaml; in a folder of files, remove it"
        )


def identity(path: Path) -> dict[str, str]:
    """Say which bytes were read: the sha256 of a file's; of a hub pointer's, and the data set and revision it pins."""
    with path.open("rb") as file:
        found = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    is_pointer = READERS.get(path.suffix.lower()) is _hub_rows
    return found | (_read_pointer(path).model_dump(include={"hub", "revision"}) if is_pointer else {})


def text_lines(path: Path) -> Iterator[str]:
    """Decode line by line, and break at line feeds only: U+2028 and its like belong to the text.

    Raises:
        InputError: a line is not UTF-8.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # A byte order mark is cut off before the decoder counts.
                byte = offset + error.start + len(line) - len(error.object)
                raise InputError(
                    f"{path} row {number} is not UTF-8 text (byte {byte} of the file): save the file as UTF-8"
                ) from None
            offset += len(line)


def _check_readable(path: Path) -> None:
    check_file(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder in a folder of files: move its files up, or out")
    if path.suffix.lower() not in READERS:
        ending, cure = path.suffix or "nothing", f"convert it to {', '.join(READERS)}"
        raise InputError(f"{path} ends in {ending}, which is not known: {cure}, or move it out of a folder of files")


def _cure_for_missing(path: Path) -> str:
    pointer = Path(f"{path}.dvc")
    if pointer.exists():
        return f"{path} does not exist, but {pointer} does: run dvc pull {pointer}"
    if path.is_symlink():
        return f"{path} is a link to nothing: mend or remove the link"
    if path.suffix.lower() not in READERS and re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()):
        named = f"{{hub: {path.as_posix()}, revision: <full commit hash>, split: train}}"
        return f"{path} is no file; if it is a hub data set, write {named} to a .yaml file and name that file"
    return f"{path} does not exist: mend the path of the source in params.yaml"


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} row {number} is not valid JSON, perhaps cut off ({_reason(error)}): mend or remove the row"
            ) from None
        yield RawRow(number, _object(fields, f"{path} row {number}"))


def _json_rows(path: Path) -> Iterator[RawRow]:
    text = "".join(text_lines(path))
    if not text.strip():
        return
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        several = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        cure = "if it holds one object a line, rename it to .jsonl" if several else "mend it, perhaps it was cut off"
        place = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{place} is not valid JSON ({_reason(error)}): {cure}") from None
    for number, fields in enumerate(_only_list(content, path), start=1):
        yield RawRow(number, _object(fields, f"{path} row {number}"))


def _reason(error: Exception) -> str:
    """Say in a few words what a library found, without its line numbers, which count from elsewhere."""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return (reason.splitlines() or [type(error).__name__])[0].rstrip(". ")


def _only_list(content: object, path: Path) -> list[object]:
    if isinstance(content, list):
        return content
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) != 1:
        raise InputError(f"{path} is neither a list of objects nor an object with one list: write it as a list")
    return lists[0]


def _object(fields: object, place: str) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise InputError(f"{place} is not an object with named columns: write it as {{column: value, ...}}")
    return fields


def _csv_rows(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST_CSV_FIELD)
    reader = csv.reader(text_lines(path), strict=True)
    header: list[str] = []
    row = 0
    try:
        for row, record in enumerate(reader, start=1):
            if not header:
                header = _header(record, path)
            elif record:
                yield RawRow(row, _csv_fields(header, record, f"{path} row {row} (line {reader.line_num})"))
    except csv.Error as error:
        raise InputError(
            f"{path} row {row + 1} (line {reader.line_num}) is not valid CSV ({error}): mend its quotes"
        ) from None


def _header(record: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in record if record.count(name) > 1})
    if twice:
        raise InputError(f"{path} row 1 names the column {twice[0]!r} twice: rename one")
    if len(record) == 1 and re.search(r"[;\t|]", record[0]):
        raise InputError(f"{path} row 1 has one column, {record[0]!r}: separate the columns by commas")
    return record


def _csv_fields(header: list[str], record: list[str], place: str) -> dict[str, Any]:
    if len(record) != len(header):
        raise InputError(
            f"{place} has {len(record)} fields where the header has {len(header)}: "
            "put fields that hold commas or quotes in double quotes"
        )
    return dict(zip(header, record, strict=True))


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_BATCH):
                for fields in batch.to_pylist():  # plain lists and dicts, where pandas would give numpy arrays
                    number += 1
                    yield RawRow(number, fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} after row {number} is not valid Parquet ({_reason(error)}): write the file again"
        ) from None


def _hub_rows(path: Path) -> Iterator[RawRow]:
    pointer = _read_pointer(path)
    if Path(pointer.hub).exists():  # the library would read that instead, whatever the revision
        raise InputError(f"{path}: {pointer.hub} is also a local path, which would hide the data set: rename that path")
    import datasets

    try:
        rows = datasets.load_dataset(pointer.hub, pointer.config, revision=pointer.revision, split=pointer.split)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        raise InputError(
            f"{path}: {pointer.hub} cannot be loaded ({_reason(error)}): mend its hub, revision, split or config"
        ) from None
    yield from (RawRow(number, fields) for number, fields in enumerate(rows, start=1))


def _read_pointer(path: Path) -> HubPointer:
    try:
        content = parse_yaml("".join(text_lines(path)))
    except YAMLError:
        raise InputError(f"{path} is not valid YAML: write hub, revision and split, one a line") from None
    if content is None:
        raise InputError(f"{path} is empty: write hub, revision and split, one a line")
    try:
        return HubPointer.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path} is no hub pointer: {_pointer_fault(error)}") from None


def _pointer_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if key == "revision":
        return "revision must be the full commit hash of 40 characters, in quotes: copy it from the data set's history"
    if key == "hub" and first["type"] == "string_pattern_mismatch":
        return "hub must name the owner and the data set: write it as owner/name"
    if first["type"] == "extra_forbidden":
        return f"{key} is not one of hub, revision, split and config: remove it"
    return f"{key} is missing: add it" if first["type"] == "missing" else "write hub, revision and split as texts"


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".yaml": _hub_rows,
    ".yml": _hub_rows,
}
