"""Rows of a data set on the Hugging Face hub, of one exact version that a .yaml file names."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from tasks.common.errors import InputError
from tasks.common.yaml_files import read_yaml
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.section import Section


class HubPointer(Section):
    """A .yaml file that names one exact version of a data set on the Hugging Face hub."""

    # Always with its owner: a bare name could mean one of the library's file readers.
    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    # A branch or tag can move; only the full hash of a commit always means the same bytes.
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    split: str
    config: str | None = None


def hub_rows(path: Path, bad: BadRows) -> Iterator[RawRow]:
    """Read the rows of the data set that a pointer names.

    Raises:
        InputError: the pointer is none, the data set cannot be loaded, or a value of it is none that Python has.
    """
    pointer = read_pointer(path)
    if Path(pointer.hub).exists():  # the library would read that instead, whatever the revision
        raise InputError(f"{path}: {pointer.hub} is also a local path, which would hide the data set: rename that path")
    import datasets

    try:
        rows = datasets.load_dataset(pointer.hub, pointer.config, revision=pointer.revision, split=pointer.split)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise InputError(
            f"{path}: {pointer.hub} cannot be loaded ({reason}): fix its hub, revision, split or config"
        ) from None
    number = 0
    try:
        for number, fields in enumerate(rows, start=1):
            yield RawRow(number, fields)
    except OverflowError as error:
        raise InputError(
            f"{path}: row {number + 1} of {pointer.hub} holds a value that Python cannot ({error}): save the data set "
            "as Parquet and name that file, of which only the columns that are used must be readable"
        ) from None


def read_pointer(path: Path) -> HubPointer:
    """Read the file that names a data set.

    Raises:
        InputError: it does not name one, or not by the full hash of a commit.
    """
    content = read_yaml(path)
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
