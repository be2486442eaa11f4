"""Checks of the folders that stages write to: real folders, writable, on a disk with space.

A finished output replaces the one before by renaming, which works neither through a link nor to another disk.
"""

import errno
import os
import tempfile
from pathlib import Path

from tasks.common.errors import InputError
from tasks.common.files import CURVES, METRICS, MODELS, PREPARED, REPORTS

FOLDERS = (PREPARED.parent, MODELS, METRICS, CURVES, REPORTS)
PROBE = 64 * 1024  # bytes: more than a file system stores in its metadata
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output_folders() -> None:
    """Check the folders of this checkout that stages write to.

    Raises:
        InputError: one is a link or not a folder, or cannot be written to.
    """
    for folder in FOLDERS:
        check_real(folder)
    check_writable("the checkout", Path.cwd(), "move it")
    for folder in FOLDERS:
        if folder.exists():
            check_writable("the folder", folder.absolute(), "make it a folder of the checkout")


def check_real(path: Path) -> None:
    """Check that no part of a path in the checkout is a link, and every parent is a folder.

    Raises:
        InputError: it is not so; the message has the cure.
    """
    for folder in [path, *path.parents][-2::-1]:  # without the working folder itself
        if folder.is_symlink():
            raise InputError(
                f"{folder} is a link to {folder.readlink()}, where DVC stores no outputs: make it a folder of the "
                "checkout again; if its disk is too small, move DVC's cache to another (dvc cache dir --local "
                "FOLDER) or the whole checkout"
            )
        is_folder = folder != path or path in FOLDERS
        if is_folder and folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file where a folder is needed: move it away")


def check_writable(what: str, folder: Path, or_else: str) -> None:
    """Write a few bytes to a folder, or to its nearest existing parent.

    Args:
        what: the folder's name in the message.
        folder: the folder.
        or_else: the cure if the folder cannot be made writable.

    Raises:
        InputError: nothing can be written; the message has the cure.
    """
    there = next((each for each in [folder, *folder.parents] if each.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{what} {folder} {_fault(error, or_else)}") from None


def _fault(error: OSError, or_else: str) -> str:
    if error.errno in FULL:
        return f"is on a full disk: free some of it, or {or_else}"
    if error.errno == errno.EROFS:
        return f"is on a read-only disk: mount it for writing, or {or_else}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"is not writable for you: grant permission, run as its owner, or {or_else}"
    return f"cannot be written to ({error.strerror}): fix that, or {or_else}"
