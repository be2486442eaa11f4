"""A metrics file as a typed record: what is written and read through it has every figure under its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError

from tasks.common.errors import InputError
from tasks.common.files import read_json, write_json


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("Input should be a text")
    return value


Text = Annotated[str, PlainValidator(_text)]  # of data: it may hold half a surrogate pair, which pydantic refuses


Number = float | None  # None: it cannot be computed


class Record(BaseModel):
    """A part of a metrics file: every key is known, none is missing, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """Give the content as plain data, without the optional keys that were not set."""
        return self.model_dump(exclude_unset=True)


Kind = TypeVar("Kind", bound=Record)


def read_record(path: Path, kind: type[Kind]) -> Kind:
    """Read a metrics file.

    Raises:
        InputError: the file is missing or damaged, or has not the layout that this version of the code writes.
    """
    return parsed(read_json(path), kind, path)


def parsed(content: Mapping[str, Any], kind: type[Kind], path: Path) -> Kind:
    """Check the layout of a metrics file's content.

    Raises:
        InputError: it is not the layout that this version of the code writes.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors()
        place = ".".join(map(str, first["loc"]))
        more = f", and {len(others)} more" if others else ""
        raise InputError(
            f"{path} has not the layout of this version ({place}: {first['msg']}{more}): run dvc repro"
        ) from None


def write_record(path: Path, record: Record) -> None:
    """Write a metrics file."""
    write_json(path, record.as_json())
