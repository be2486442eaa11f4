"""What a source looks like: cheaply, by names, sizes and times of its files, and for certain, by their content."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Files that no stage reads; editors and Python write them.
IGNORED = "__pycache__"
# The clock of a file system may not tell a change in the same moment.
TRUSTED_AFTER = 2.0


class Look(NamedTuple):
    """A source without its content."""

    signature: str  # the same: nothing has been written since
    newest: float  # the last change of a file, in seconds since 1970

    def is_trusted(self, at: float) -> bool:
        """Tell whether a later change must have changed the signature."""
        return at - self.newest > TRUSTED_AFTER


def look(source: Path) -> Look | None:
    """Look at a file or folder; None where there is none."""
    digest, newest, is_there = hashlib.sha256(), 0.0, False
    for path in _files(source):
        try:
            status = path.stat()
        except OSError:  # a link to nothing, or gone since
            continue
        is_there = True
        # No program can set the time of a change (ctime) to one of before.
        seen = (_name(path, source), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(repr(seen).encode("utf-8", "surrogateescape"))
        newest = max(newest, status.st_ctime)
    return Look(digest.hexdigest(), newest) if is_there else None


def content_of(source: Path) -> str:
    """Give the SHA-256 of names and contents of all files.

    Raises:
        OSError: a file cannot be read, or is gone since.
    """
    digest = hashlib.sha256()
    for path in _files(source):
        with path.open("rb") as file:
            name = _name(path, source).encode("utf-8", "surrogateescape")
            digest.update(hashlib.sha256(name).digest() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def now() -> float:
    """Give the seconds since 1970."""
    return time.time()


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    for folder, folders, files in os.walk(source):  # nothing, of what is no folder
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        yield from (Path(folder, name) for name in sorted(files) if not _is_ignored(name))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name == IGNORED


def _name(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()
