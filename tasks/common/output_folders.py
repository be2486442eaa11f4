"""The places that stages write to: real folders on a disk with room that may be written, or one sentence that says not.

A finished folder takes the place of the one before by renaming, which neither leads through a link nor to another disk.
"""

import errno
import os
import tempfile
from pathlib import Path

from tasks.common.errors import InputError
from tasks.common.files import CURVES, METRICS, MODELS, PREPARED, REPORTS

FOLDERS = (PREPARED.parent, MODELS, METRICS, CURVES, REPORTS)
PROBE = 64 * 1024  # bytes: more than what a file system keeps within its own books
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_places() -> None:
    """Look at the folders of this checkout that stages write to.

    Raises:
        InputError: one is a link or no folder, or nothing can be written there.
    """
    for folder in FOLDERS:
        check_real(folder)
    check_writable("the checkout", Path.cwd(), "move it")
    for folder in FOLDERS:
        if folder.exists():
            check_writable("the folder", folder.absolute(), "make it a folder of the checkout")


def check_real(path: Path) -> None:
    """Make sure that a path of the checkout leads through no link, and only through folders.

    Raises:
        InputError: it does not; the sentence has the cure.
    """
    for folder in [path, *path.parents][-2::-1]:  # without the working folder itself
        if folder.is_symlink():
            raise InputError(
                f"{folder} is a link to {folder.readlink()}, where DVC keeps no outputs: make it a folder of the "
                "checkout again; where its disk is too small, move DVC's cache to another (dvc cache dir --local "
                "FOLDER) or the whole checkout"
            )
        is_folder = folder != path or path in FOLDERS
        if is_folder and folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file where a folder is needed: move it away")


def check_writable(what: str, folder: Path, or_else: str) -> None:
    """Write a little in a folder, or in the nearest one above it that there is.

    Args:
        what: what people call the folder.
        folder: where to write.
        or_else: how to do without it, where it cannot be mended.

    Raises:
        InputError: nothing can be written; the sentence has the cure.
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
        return f"is on a disk that may only be read: mount it for writing, or {or_else}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"may not be written by you: grant it, run as its owner, or {or_else}"
    return f"cannot be written ({error.strerror}): mend that, or {or_else}"
