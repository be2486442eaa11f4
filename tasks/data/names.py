"""The one spelling of a name: in records and outputs, in the file of exclusions, and where one is asked for."""

import os
import re
import unicodedata
from pathlib import Path

from tasks.errors import InputError

WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(\.0+)?")


def as_name(text: str) -> str:
    """Spell an annotator or a category as records do: Unicode composed, single spaces, a whole number without `.0`."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    number = WHOLE_NUMBER.fullmatch(name)
    return number[1] if number else name


def name_in_outputs(path: str) -> str:
    """Name a file or folder by its path within the project, or by its own name alone where it lies outside.

    However a path is spelt, and wherever a machine keeps its data, the outputs have the same bytes.
    """
    return _within_project(path) or Path(os.path.normpath(path)).name


def source_asked_for(name: str) -> str:
    """Spell a source as records do, from its path in the project or its name in the records.

    Raises:
        InputError: it is a path that leads out of the project, from which the name in the records does not follow.
    """
    found = _within_project(name)
    if found is None:
        raise InputError(
            f"{name} lies outside the project: name the source as the rows do (data/prepare), such as week/a.jsonl"
        )
    return found


def stands_for(name: str, source: str) -> bool:
    """Tell whether a name is that of a source, or of a folder that it lies in."""
    return f"{source}/".startswith(f"{name}/")


def _within_project(path: str) -> str | None:
    project = Path.cwd()
    written = Path(os.path.normpath(project / path))
    for whole in (written, Path(os.path.realpath(written))):  # a link may be on the way to the project
        if whole.is_relative_to(project):
            return whole.relative_to(project).as_posix()
    return None
