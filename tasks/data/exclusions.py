"""What must not be used again: a text file with `row ID`, `source NAME` or `annotator NAME` a line, # for comments.

Names are read as records spell them. In double quotes, where they are written as in JSON, they may hold anything.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from tasks.common.errors import InputError
from tasks.common.files import replacing
from tasks.data.names import as_name, source_asked_for
from tasks.data.sources.source import check_file
from tasks.data.sources.text_files import text_lines

What = Literal["row", "source", "annotator"]
SPELLINGS: dict[What, Callable[[str], str]] = {"row": as_name, "source": source_asked_for, "annotator": as_name}
LONGEST_LINE = 4_096  # characters; a file's name has fewer
# A name in quotes or as it stands, then perhaps a comment: a # after white space, as a file's name may hold one.
LINE = re.compile(rf'({"|".join(get_args(What))})\s+(?:("(?:[^"\\]|\\.)*")|([^\s#"].*?))(?:\s+#.*)?')


class Exclusion(NamedTuple):
    """What a line names."""

    what: What
    name: str  # as records have it: an id, a source or the folder of some, or an annotator


def read_exclusions(path: Path) -> frozenset[Exclusion]:
    """Read the file.

    Raises:
        InputError: it does not exist, is not UTF-8 text, or a line of it cannot be understood or names a path outside
            the project.
    """
    named = set()
    if path.exists():
        check_file(path)  # a pipe would be waited for, and some devices never end
    try:
        for number, line in enumerate(map(str.strip, text_lines(path)), start=1):
            if not line or line.startswith("#"):
                continue
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path} row {number} has {len(line):,} characters: no name is that long, shorten it")
            try:
                exclusion = _understood(line)
            except InputError as error:
                raise InputError(f"{path} row {number}: {error}") from None
            if exclusion is None:
                raise InputError(
                    f"{path} row {number} names nothing to exclude: write `row ID`, `source NAME` or `annotator NAME`, "
                    "with the name in double quotes, as in JSON, where it begins with one or holds #"
                )
            named.add(exclusion)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} is no file: restore it from git, or make an empty one") from None
    return frozenset(named)


def add_exclusion(path: Path, what: What, name: str) -> bool:
    """Add a line, unless the file has it already; tell whether it was added.

    Raises:
        InputError: the file cannot be read as it is, or the name is none.
    """
    asked = _spelt(what, name)
    if asked is None:
        raise InputError(f"{name!r} names nothing: name one {what}")
    if asked in read_exclusions(path):
        return False
    lines = "".join(text_lines(path))
    if lines and not lines.endswith("\n"):
        lines += "\n"
    with replacing(path) as draft:
        draft.write_text(f"{lines}{_written(asked)}\n", encoding="utf-8")
    return True


def _written(exclusion: Exclusion) -> str:
    """Write a line, in quotes where it would be read as something else or could not be seen."""
    plain, seen = " ".join(exclusion), exclusion.name.isprintable()
    if seen and _understood(plain) == exclusion:
        return plain
    return f"{exclusion.what} {json.dumps(exclusion.name, ensure_ascii=not seen)}"


def _understood(line: str) -> Exclusion | None:
    found = LINE.fullmatch(line)
    if found is None:
        return None
    what, quoted, plain = cast("What", found[1]), found[2], found[3]
    try:
        name = json.loads(quoted, strict=False) if quoted else plain
    except ValueError:
        return None
    return _spelt(what, name)


def _spelt(what: What, name: str) -> Exclusion | None:
    """Give what is meant in the spelling of records; None for a name that nothing can have."""
    spelt = SPELLINGS[what](name) if name.strip() and "\0" not in name else ""
    return Exclusion(what, spelt) if spelt else None
