"""Sources that `dvc import-url` brought from elsewhere, such as an S3 prefix: whether they have changed there.

What a remote says cheaply of its files (names, sizes, ETags or times) tells that something was written; `dvc update`
then fetches it, and the content of the files here decides whether it is news.
"""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.common.children import child
from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets
from tasks.common.yaml_files import read_yaml

# Of one file, in the words of S3, Azure, Google, HTTP and a folder.
MARKS = ("ETag", "etag", "content_md5", "md5Hash", "checksum", "LastModified", "last_modified", "mtime", "ino")


def pointer_of(source: Path) -> Path | None:
    """Give the file by which DVC knows where a source was imported from; None where it was not."""
    pointer = source.with_name(f"{source.name}.dvc")
    if not pointer.is_file():
        return None
    content = read_yaml(pointer)
    deps = content.get("deps") if isinstance(content, dict) else None
    return pointer if deps and "repo" not in deps[0] else None


def remote_signature(pointer: Path) -> str:
    """Describe the files where they come from, without reading them.

    Raises:
        InputError: the place cannot be asked, or a package for it is not installed.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            [imported] = repo.stage.load_file(str(pointer))
            found = _files(imported.deps[0])
    except ImportError as error:
        raise InputError(f"{pointer}: {without_secrets(str(error))}: make production installs it") from None
    except (DvcException, OSError) as error:
        raise InputError(f"{pointer}: its source cannot be asked ({without_secrets(str(error))})") from None
    except Exception as error:  # of the library of whatever place it is
        raise InputError(
            f"{pointer}: its source cannot be asked ({type(error).__name__}: {without_secrets(str(error))})"
        ) from None
    marks = [
        (name, info.get("size"), *(str(info[mark]) for mark in MARKS if mark in info)) for name, info in found.items()
    ]
    return hashlib.sha256(repr(sorted(marks)).encode()).hexdigest()


def _files(place: Any) -> Mapping[str, Mapping[str, Any]]:  # noqa: ANN401 - a dependency of DVC, which has no types
    """List the files there by name, with what the file system says of each."""
    system, path = place.fs.fs, place.fs_path
    system.invalidate_cache()  # it would list what was there before
    listed = system.find(path, detail=True)
    # DVC's own class for this machine's files gives names alone.
    found = listed if isinstance(listed, Mapping) else {name: system.info(name) for name in listed}
    if not found:
        raise FileNotFoundError(f"there is nothing at {path}")
    return found


def fetch(pointer: Path) -> None:
    """Have DVC fetch what has changed.

    Raises:
        InputError: it cannot.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "update", "--quiet", str(pointer)]
    with child(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        if process.wait() != 0:
            reason = " ".join(line.removeprefix("ERROR: ") for line in errors.splitlines() if line)
            raise InputError(f"{pointer}: dvc update failed ({without_secrets(reason)}): it is tried again")
