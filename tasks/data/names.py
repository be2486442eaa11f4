"""The one spelling of a name: in records and outputs, in the file of exclusions, and where one is asked for."""

import os
import re
import unicodedata
from pathlib import Path

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
    project = Path.cwd()
    written = Path(os.path.normpath(project / path))
    for whole in (written, Path(os.path.realpath(written))):  # a link may be on the way to the project
        if whole.is_relative_to(project):
            return whole.relative_to(project).as_posix()
    return written.name


def stands_for(name: str, source: str) -> bool:
    """Tell whether a name is that of a source, or of a folder that it lies in."""
    return f"{source}/".startswith(f"{name}/")
