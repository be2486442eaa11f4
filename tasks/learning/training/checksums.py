"""Folders with a checksum of each file, over name and content, which reveals changed, truncated or swapped ones.

The formats of their files would not: a flipped bit of a weight is another weight. SHA-256 takes half a second per
gigabyte where the processor has instructions for it (blake2b .8, md5 1.3). Processes share the work.
"""

import hashlib
import json
from pathlib import Path

from tasks.common.files import write_json
from tasks.learning import processes

HASH = "sha256"
CHUNK = 1 << 20
CHECKSUMS = "checksums.json"


def write_checksums(folder: Path, name: str) -> None:
    """Add the checksums of a folder's files, which are there in every process; all take part.

    Args:
        folder: without folders in it.
        name: what it is, so that another one in its place is not taken for it.
    """
    files = sorted(file.name for file in folder.iterdir())
    own = {file: _checksum(folder / file, name) for file in _share(files)}
    checksums = {file: found for each in processes.gathered([own]) for file, found in each.items()}
    if processes.is_main():
        write_json(folder / CHECKSUMS, {file: checksums[file] for file in files})


def own_share_is_intact(folder: Path, name: str) -> bool:
    """Whether the files of a folder are those that it had, and this process's share of them has its checksums."""
    try:
        checksums = json.loads((folder / CHECKSUMS).read_bytes())
        files = sorted(checksums)
    except (ValueError, TypeError, FileNotFoundError):  # damaged itself
        return False
    if {*files, CHECKSUMS} != {file.name for file in folder.iterdir()}:
        return False
    return all(_checksum(folder / file, name) == checksums[file] for file in _share(files))


def _share(files: list[str]) -> list[str]:
    return files[processes.rank() :: processes.world_size()]


def _checksum(file: Path, name: str) -> str:
    digest = hashlib.new(HASH, f"{name}/{file.name}".encode() + b"\0")
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
