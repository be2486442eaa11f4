"""Rows of Parquet files, in bounded memory: a small file can hold columns or pages of any size."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError, quoted
from tasks.data.sources.raw_rows import LONGEST_ROW, BadRows, RawRow, Unreadable

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ROWS_AT_ONCE = 1024
BYTES_AT_ONCE = 2**26  # of their texts
# A file may unpack to this, or to so many times its own bytes: text is packed to a tenth, and to a hundredth at most.
UNPACKED_BYTES, UNPACKED_TIMES = 2**30, 1000
UNREADABLE = (OverflowError, ValueError, LookupError)  # far dates, broken text, clocks of nowhere
ARGUMENTS = "arguments"  # of a call of a function, in a message
BYTES_A_ROW = 50  # what an empty row takes at least


def parquet_rows(path: Path, bad: BadRows) -> Iterator[RawRow]:
    """Read rows as plain lists and dicts.

    Raises:
        InputError: the file is damaged, names a column or a field twice, or unpacks to much more than it can mean.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as plain:
            _check_names(plain.schema_arrow, path)
            left, kinds = _check_sizes(plain.metadata, path), plain.schema_arrow.types
            texts = [column.path for column in _leaves(plain.metadata) if column.physical_type == "BYTE_ARRAY"]
        # A text that is repeated is held once, as in the file.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for some in _portions(batch):
                    size = sum(_unpacked(column) for column in some.columns)
                    left -= size
                    if left < 0 or (some.num_rows == 1 and size > LONGEST_ROW):
                        raise _bomb(path, f"row {number + 1}")
                    for fields in _plain(some, kinds):
                        number += 1
                        yield RawRow(number, fields)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise InputError(f"{path} after row {number} is not valid Parquet ({reason}): write the file again") from None


def _check_names(fields: "Iterable[pyarrow.Field]", path: Path, within: str = "") -> None:
    """Refuse names that stand twice side by side: the last would win."""
    named = [field.name for field in fields]
    twice = [name for name, times in Counter(named).items() if times > 1]
    if twice:
        raise InputError(f"{path} names the column {quoted(within + twice[0])} twice: rename one")
    for field in fields:
        _check_names(_children(field.type), path, f"{within}{field.name}.")


def _children(kind: "pyarrow.DataType") -> "list[pyarrow.Field]":
    return [kind.field(number) for number in range(kind.num_fields)]


def _leaves(metadata: "pyarrow.parquet.FileMetaData") -> "list[pyarrow.parquet.ColumnSchema]":
    return [metadata.schema.column(number) for number in range(metadata.num_columns)]


def _check_sizes(metadata: "pyarrow.parquet.FileMetaData", path: Path) -> int:
    """Give the bytes that the file may unpack to, once what it says about itself is within them."""
    limit = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)
    if metadata.num_rows * BYTES_A_ROW > limit:
        raise _bomb(path, f"its {metadata.num_rows:,} rows")
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > limit:
                raise _bomb(path, f"its column {quoted(column.path_in_schema)}")
    return limit


def _bomb(path: Path, what: str) -> InputError:
    size = path.stat().st_size
    return InputError(
        f"{path} has {size:,} bytes, and {what} would unpack to more than is taken ({LONGEST_ROW >> 20} MiB a row, and "
        f"{UNPACKED_BYTES >> 30} GiB or {UNPACKED_TIMES:,} times the file in all): write it again without such values"
    )


def _portions(batch: "pyarrow.RecordBatch") -> "Iterator[pyarrow.RecordBatch]":
    """Give a batch whole where its texts fit into memory, or else row by row."""
    if sum(map(_unpacked, batch.columns)) <= BYTES_AT_ONCE:
        yield batch
    else:
        yield from (batch.slice(number, 1) for number in range(batch.num_rows))


def _unpacked(array: "pyarrow.Array") -> int:
    """Bytes of an array's values where each stands for itself, with what an object takes besides."""
    import pyarrow
    from pyarrow import compute

    kind = array.type
    if pyarrow.types.is_dictionary(kind) and _is_text(kind.value_type):
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return (compute.sum(lengths).as_py() or 0) + BYTES_A_ROW * len(array)
    if pyarrow.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
        return sum(_unpacked(part.slice(first, last - first)) for part in (array.keys, array.items))
    if pyarrow.types.is_struct(kind):
        return sum(map(_unpacked, array.flatten()))
    if kind.num_fields:  # lists of all kinds
        return _unpacked(array.flatten()) + BYTES_A_ROW * len(array)
    return int(array.nbytes) + BYTES_A_ROW * len(array)


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return any(
        is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    )


def _plain(batch: "pyarrow.RecordBatch", kinds: "list[pyarrow.DataType]") -> Iterator[dict[str, Any]]:
    columns = [_values(column, kind) for column, kind in zip(batch.columns, kinds, strict=True)]
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: "pyarrow.Array", kind: "pyarrow.DataType") -> list[Any]:
    """Give Python's values; one that Python cannot hold, such as a far date, is `Unreadable`."""
    import pyarrow

    with suppress(pyarrow.ArrowNotImplementedError):
        column = column.cast(kind)  # quicker than to read each value from its dictionary
    try:
        values: list[Any] = column.to_pylist()
    except UNREADABLE:
        values = [_value(value) for value in column]
    return [_without_absent(value) for value in values] if f"{ARGUMENTS}: struct<" in str(kind) else values


def _without_absent(value: object) -> object:
    """Leave out the arguments of calls that are null: Parquet gives each call those of all others in the file."""
    if isinstance(value, list):
        return [_without_absent(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = {key: _without_absent(each) for key, each in value.items()}
    if isinstance(inner.get(ARGUMENTS), dict):
        inner[ARGUMENTS] = _without_null(inner[ARGUMENTS])
    return inner


def _without_null(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value


def _value(scalar: "pyarrow.Scalar") -> object:
    try:
        value: object = scalar.as_py()
    except UNREADABLE as error:
        return Unreadable(str(error))
    return value
