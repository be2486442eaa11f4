"""The one spelling of a name: in records and outputs, in the file of exclusions, and where one is asked for."""

import os
import re
import unicodedata
from pathlib import Path

from tasks.common.errors import InputError

WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(\.0+)?")
# Characters that are drawn as nothing (Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties.txt), controls
# but for white space, and marks between the lines of ruby.
INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def as_name(text: str) -> str:
    """Spell an annotator or a category as records do: as it is shown, and without capitals.

    It is Unicode's NFKC_Casefold (UAX 31) with single spaces: names that differ to no reader, or in capitals, are one.
    """
    return shown_name(unicodedata.normalize("NFKC", shown_name(text).casefold()))


def shown_name(text: str) -> str:
    """Spell a name that is only shown, in its own capitals.

    What no reader sees is left out (zero-width characters, marks of direction, variants of a form), letters and digits
    have their usual width and are composed (Unicode's NFKC), spaces are single, a whole number is without `.0`.
    """
    seen = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    name = " ".join(unicodedata.normalize("NFKC", seen).split())
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
