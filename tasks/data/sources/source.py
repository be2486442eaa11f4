"""What a source is: a file of a known ending, a folder of such files, or a pointer to a data set of the hub.

Nothing is interpreted here: a row is the object, record or table row as it stands. Row numbers are what a person finds
when opening the file: the line of a JSONL file, the row of a spreadsheet for CSV (the header is row 1), the position
from 1 elsewhere.
"""

import hashlib
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.python_files import is_python, license_of
from tasks.data.names import name_in_outputs
from tasks.data.sources.feedback import is_collected, origin, pairs_of, with_pairs
from tasks.data.sources.hub import hub_rows, read_pointer
from tasks.data.sources.layouts import CURES_BY_ENDING, refuse_saved_data_set
from tasks.data.sources.parquet import parquet_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.data.sources.text_files import csv_rows, json_rows, jsonl_rows
from tasks.settings.params import Source


def files_of(source: Source) -> dict[str, Source]:
    """Take a folder apart: a source for each file in it, by its name in outputs; a file is a source already.

    A pointer of DVC's stands for the file that it tracks, which lies beside it or has to be pulled; a folder of
    collected answers in it for the pairs that were made of them.

    Raises:
        InputError: the folder has no files, may not be read, or is a data set that `save_to_disk` wrote.
    """
    name, folder = name_in_outputs(source.source), Path(source.source)
    try:
        found = [each for each in folder.iterdir() if not each.name.startswith(".")]
    except PermissionError:
        raise InputError(f"{folder} may not be read: grant read permission or run as its owner") from None
    except OSError:  # it is no folder; what else is wrong with it is reported when it is read
        return {name: source}
    refuse_saved_data_set(folder)
    files = (
        [pairs_of(folder)]
        if is_collected(folder)
        else sorted({each.with_suffix("") if each.suffix == ".dvc" else each for each in with_pairs(found)})
    )
    if not files:
        raise InputError(f"{folder} is an empty folder: put {', '.join(READERS)} files into it")
    return {
        Path(name, file.relative_to(folder)).as_posix(): source.model_copy(update={"source": file.as_posix()})
        for file in files
    }


def check_file(path: Path) -> None:
    """Make sure that a source is a regular file that may be read, or a folder; its content is not looked at.

    Raises:
        InputError: it is missing, may not be read, is a pipe, or its name is none that outputs can hold.
    """
    try:
        str(path).encode()
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # to open a pipe would be to wait for its writer
            path.open("rb").close()
    except UnicodeEncodeError:
        raise InputError(f"the name {str(path)!a} is not UTF-8: rename the file") from None
    except PermissionError:
        raise InputError(f"{path} may not be read: grant read permission or run as its owner") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(_cure_for_missing(path)) from None
    except OSError as error:  # a link to itself, a name that is too long
        raise InputError(f"{path} cannot be read ({error.strerror}): fix its name or link") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path} is a pipe, socket or device: write its rows to a file")


def read_rows(source: Source, bad: BadRows) -> Iterator[RawRow]:
    """Read the rows of a file, or of the hub data set it points to; those that cannot be read are recorded in `bad`.

    Raises:
        InputError: the source is missing, unreadable, empty, damaged, not UTF-8 or of an unknown kind.
    """
    path = Path(source.source)
    _check_readable(path)
    empty = True
    for row in READERS[path.suffix.lower()](path, bad):
        empty = False
        yield row
    if empty and not bad.count:
        raise InputError(
            f"{path} holds no rows: fill it, or name another source in params.yaml; in a folder of files, remove it"
        )


def identity(path: Path) -> dict[str, Any]:
    """Say which bytes were read, by their sha256, and what else is known of their origin.

    That is what a hub pointer pins, which licence a Python file states, or who made AI pairs.
    """
    with path.open("rb") as file:
        found: dict[str, Any] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if is_python(str(path)):
        return found | license_of(path)
    found |= origin(path)
    is_pointer = READERS.get(path.suffix.lower()) is hub_rows
    return found | (read_pointer(path).model_dump(include={"hub", "revision"}) if is_pointer else {})


def _check_readable(path: Path) -> None:
    check_file(path)
    if path.is_dir():
        refuse_saved_data_set(path)
        raise InputError(f"{path} is a folder in a folder of files: move its files up, or out")
    if path.suffix.lower() not in READERS:
        ending, cure = path.suffix or "nothing", CURES_BY_ENDING.get(path.suffix.lower())
        cure = cure.format(path=path, stem=path.stem) if cure else f"convert it to {', '.join(READERS)}"
        raise InputError(f"{path} ends in {ending}, which is not known: {cure}, or move it out of a folder of files")


def _cure_for_missing(path: Path) -> str:
    pointer = Path(f"{path}.dvc")
    if pointer.exists():
        return f"{path} does not exist, but {pointer} does: run dvc pull {pointer}"
    if path.is_symlink():
        return f"{path} is a link to nothing: fix or remove the link"
    if path.suffix.lower() not in READERS and re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()):
        named = f"{{hub: {path.as_posix()}, revision: <full commit hash>, split: train}}"
        return f"{path} is no file; if it is a hub data set, write {named} to a .yaml file and name that file"
    return f"{path} does not exist: fix the path of the source in params.yaml"


READERS: dict[str, Callable[[Path, BadRows], Iterator[RawRow]]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".yaml": hub_rows,
    ".yml": hub_rows,
}
