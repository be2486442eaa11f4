"""Rows that a function of a Python file makes: what no file holds yet, such as simulated data."""

from collections.abc import Iterator
from pathlib import Path

from tasks.common.errors import InputError
from tasks.common.python_files import errors_of, load_function
from tasks.data.records import Kind
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import Source

NO_ROW = "is not a dict with texts as keys"
ROW_CURE = "yield {column: value, ...}"


def python_rows(source: Source, kind: Kind, seed: int, bad: BadRows) -> Iterator[RawRow]:
    """Call the function that is named as the kind, with `seed` and `options`; rows are numbered from 1.

    Raises:
        InputError: the file or the function is missing, or fails; or it yields no rows.
    """
    path = Path(source.source)
    function, shown = load_function(path, kind), f"{path}:{kind}"
    cure = f"fix it, or prepare.{kind}.options in params.yaml"
    number = 0
    with errors_of(path, shown, cure):
        rows = iter(function(seed=seed, options=source.options))
    while True:
        with errors_of(path, f"{shown} row {number + 1}", cure):
            try:
                fields = next(rows)
            except StopIteration:
                break
        number += 1
        if isinstance(fields, dict) and all(isinstance(name, str) for name in fields):
            yield RawRow(number, fields)
        else:
            bad.add(number, NO_ROW, ROW_CURE)
    if not number:
        raise InputError(f"{shown} yields no rows: {cure}")
