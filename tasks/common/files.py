"""Paths of the pipeline's files, and writing them completely or not at all."""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError

PREPARED, VALIDATED = Path("data/prepare"), Path("data/validate")
# The valid AI pairs, apart: what does not learn from them must not depend on them.
AI_VALIDATED = Path("data/ai_preferences")
MODELS, METRICS, CURVES, REPORTS = Path("models"), Path("metrics"), Path("curves"), Path("reports")
# State of a checkout outside DVC: locks, checkpoints, the last failure, data docs, servers' files.
STATE = Path(".trueline")
# A lone surrogate, which UTF-8 cannot encode, becomes its JSON escape: damaged text can be saved and shown.
KEEP_SURROGATES = "backslashreplace"
# In every temporary folder, and locked while the process that created it runs.
IN_USE = ".in-use"
SECONDS_TO_LOCK = 60.0  # the lock of a new folder may not be taken yet


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is deleted.

    For files and folders: the block creates either.
    """
    with temporary_folder(path) as folder:
        draft = folder / path.name
        yield draft
        if path.is_dir():  # deleted with the temporary folder, once the new one is in its place
            path.replace(folder / ".replaced")
        draft.replace(path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` for a block; folders of killed processes are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:  # it names the temporary folder, which no user knows
        raise OSError(error.errno, error.strerror, str(path.parent)) from None
    try:
        with (folder / IN_USE).open("w") as lock:
            with suppress(OSError):  # a file system without locks: abandoned folders stay there
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    for file in path.parent.glob(f".{escape(path.name)}.*/{IN_USE}"):
        with suppress(OSError), file.open() as lock:
            if time.time() - file.stat().st_mtime > SECONDS_TO_LOCK:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON; the same content gives the same bytes."""
    with replacing(path) as draft:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8", errors=KEEP_SURROGATES)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that the pipeline wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError:
        raise InputError(f"{path} is damaged: delete it and run dvc repro") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: delete it and run dvc repro")
    return content


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line; the same rows give the same bytes."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", errors=KEEP_SURROGATES) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a header and one line per row, with None as an empty field; the same rows give the same bytes."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read rows that the pipeline wrote, one at a time.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    require_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_row(path, number, line)


def parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Parse a line of a JSONL file that the pipeline wrote.

    Raises:
        InputError: it is damaged.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise damaged_row(path, number)
    return row


def require_file(path: Path) -> None:
    """Check that a file of the pipeline exists.

    Raises:
        InputError: it is missing.
    """
    if not path.exists():
        raise _missing(path)


def damaged_row(path: Path, number: int) -> InputError:
    """Return the error for a damaged row."""
    return InputError(f"{path} row {number} is damaged: delete the file and run dvc repro")


def hash_files(path: Path) -> str:
    """Return the SHA-256, in 64 hexadecimal digits, of names and contents of a file or of all files in a folder.

    Raises:
        InputError: it is missing.
    """
    require_file(path)
    digest = hashlib.sha256()
    for found in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        with found.open("rb") as file:
            name = found.relative_to(path.parent).as_posix().encode()
            digest.update(hashlib.sha256(name).digest() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def names_path_in(value: object, place: Path) -> bool:
    """Tell whether a text, or one at any depth in a value, is the path of a file or folder, or of what lies in it."""
    if isinstance(value, Mapping):
        return any(names_path_in(each, place) for each in value.values())
    if isinstance(value, list):
        return any(names_path_in(each, place) for each in value)
    # resolve() would follow links.
    return isinstance(value, str) and Path(os.path.abspath(value)).is_relative_to(os.path.abspath(place))  # noqa: PTH100


def _missing(path: Path) -> InputError:
    return InputError(f"{path} does not exist: run the stage that writes it (dvc repro)")
