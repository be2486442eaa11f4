"""What must not be used again: a text file with `row ID`, `source NAME` or `annotator NAME` a line, # for comments."""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tasks.data.files import replacing
from tasks.errors import InputError

What = Literal["row", "source", "annotator"]


class Exclusion(NamedTuple):
    """What a line names."""

    what: What
    name: str  # as records have it: an id, a source or an annotator


def read_exclusions(path: Path) -> frozenset[Exclusion]:
    """Read the file.

    Raises:
        InputError: it does not exist, is not UTF-8 text, or a line of it cannot be understood.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} is no file: restore it from git, or make an empty one") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    known: dict[str, What] = {what: what for what in get_args(What)}
    named = set()
    for number, line in enumerate(lines, start=1):
        if said := _without_comment(line):
            what, _, name = said.partition(" ")
            if what not in known or not name:
                raise InputError(
                    f"{path} row {number} names nothing to exclude: write `row ID`, `source NAME` or `annotator NAME`"
                )
            named.add(Exclusion(known[what], name.strip()))
    return frozenset(named)


def add_exclusion(path: Path, what: What, name: str) -> bool:
    """Add a line, unless the file has it already; tell whether it was added.

    Raises:
        InputError: the file cannot be read as it is, or the name is empty or more than a line.
    """
    if not name.strip() or _without_comment(name) != name or len(name.splitlines()) != 1:
        raise InputError(f"{name!r} cannot be written as a line of {path}: name one {what}")
    if (what, name) in read_exclusions(path):
        return False
    lines = [*path.read_text(encoding="utf-8").splitlines(), f"{what} {name}"]
    with replacing(path) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return True


def _without_comment(line: str) -> str:
    """A # begins a comment at the start of a line or after a space: a file's name may hold one."""
    return "" if line.startswith("#") else line.partition(" #")[0].strip()
