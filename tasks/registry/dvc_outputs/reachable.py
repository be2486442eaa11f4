"""Whether contents can be had again: all their objects, in DVC's default remote."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.cache import FOLDER, secure
from tasks.registry.dvc_outputs.remote import asked, default_remote
from tasks.registry.dvc_outputs.stages import repository

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.repo import Repo


def unreachable(contents: Mapping[str, str], *, counts_cache: bool = False) -> list[str]:
    """Say in a sentence each what of some contents the default remote lacks or has damaged.

    In a remote that is a folder the objects are hashed; in others it is asked whether they exist.

    Args:
        contents: hashes as dvc.lock has them, by what a sentence calls them.
        counts_cache: whether a content that DVC's cache has is no fault.

    Raises:
        RemoteError: the remote cannot be asked.
    """
    name = default_remote()
    if name is None:
        cure = "name one (dvc remote add -d NAME ADDRESS) and run trueline backup --push"
        return [f"DVC has no default remote, so models and data lie in this checkout alone: {cure}"]
    faults, known = [], dict[str, str | None]()
    with repository(wait=True) as repo, asked(repo) as remote:
        for what, md5 in contents.items():
            fault = _fault(remote, md5, known)
            if fault and not (counts_cache and _is_cached(repo, md5)):
                faults.append(f"{what} ({md5}) {fault} DVC's remote {name}")
    return faults


def _fault(remote: "Remote", md5: str, known: dict[str, str | None]) -> str | None:
    """Say what is wrong with a content in the remote; `known` remembers it by object."""
    oids = [md5]
    _look(remote, oids, known)
    if known[md5] is None and md5.endswith(FOLDER):
        with remote.fs.open(remote.odb.oid_to_path(md5), "rb") as file:
            listing = file.read()
        if hashlib.md5(listing).hexdigest() + FOLDER != md5:
            return "has a damaged listing in"
        oids = [str(entry["md5"]) for entry in json.loads(listing)]
        _look(remote, oids, known)
    return next((fault for oid in oids if (fault := known[oid])), None)


def _look(remote: "Remote", oids: Iterable[str], known: dict[str, str | None]) -> None:
    new = {oid for oid in oids if oid not in known}
    if remote.fs.protocol == "local":
        known |= {oid: _fault_of_file(Path(remote.odb.oid_to_path(oid)), oid) for oid in new}
    else:
        there = set(remote.odb.list_oids_exists(new))
        known |= {oid: None if oid in there else "is not, or not all of it, in" for oid in new}


def _fault_of_file(path: Path, oid: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
    except FileNotFoundError:
        return "is not, or not all of it, in"
    return None if found == oid.removesuffix(FOLDER) else "is damaged in"


def _is_cached(repo: "Repo", md5: str) -> bool:
    with suppress(InputError):
        secure(repo, md5, md5)
        return True
    return False
