"""What DVC's cache holds, hashed whenever it is used: a damaged object is brought back, or set aside and reported.

DVC takes an object of mode 444 for intact without looking, hands it out, and keeps it when the stage that made it runs
again; a damaged one of another mode it deletes with an error of its own.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import STATE, replacing
from tasks.registry.dvc_outputs.stages import recorded_outputs, repository

if TYPE_CHECKING:
    from dvc.repo import Repo

DAMAGED = STATE / "damaged"  # objects that were in DVC's cache under a name that is not their hash
FOLDER = ".dir"  # what DVC's hash of a folder ends with
Files = Mapping[str, str]  # md5 by path within a folder; of a single file, by the empty path
logger = logging.getLogger(__name__)


class NotCachedError(InputError):
    """DVC's cache does not hold a content, or not all of it."""

    def __init__(self, lacking: str, cure: str) -> None:
        super().__init__(f"{lacking}: {cure}")
        self.cure = cure


class DamagedError(InputError):
    """A content is not what the record says, and no copy is intact."""


class Hashed(NamedTuple):
    """A file or folder by its bytes."""

    md5: str  # `<md5>.dir` of a folder
    files: Files
    listing: bytes = b""  # of a folder, as DVC's cache keeps it


def materialise(md5: str, folder: Path, links: Sequence[str] = (), *, what: str = "") -> Files:
    """Write what DVC's cache holds under a hash to `folder`, hashed, whole or not at all.

    Args:
        md5: the hash as dvc.lock has it, `<md5>.dir` for a folder.
        folder: where to; what is there is replaced.
        links: ways to put a file there, the first that the file system knows (reflink, hardlink, symlink, copy);
            without any, those of DVC's own setting cache.type.
        what: what a sentence calls it; else as dvc.lock does, or `folder`.

    Returns:
        The files that were written.

    Raises:
        NotCachedError: the cache does not hold that content, or not all of it.
        DamagedError: an object in the cache is damaged, and no other place has it.
    """
    from dvc_data.hashfile import load
    from dvc_data.hashfile.checkout import checkout
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_objects.fs.local import localfs

    with repository() as repo, replacing(folder) as draft:
        files = secure(repo, md5, what or _path(md5) or str(folder))
        cache = repo.cache.local
        if links:
            cache.cache_types = list(links)
        checkout(str(draft.absolute()), localfs, load(cache, HashInfo("md5", md5)), cache, force=True)
    return files


def has_hard_links() -> bool:
    """Whether DVC's settings (cache.type) have outputs be hard links to its cache."""
    with repository() as repo:
        return "hardlink" in repo.cache.local.cache_types


def check_cached(md5: str, what: str) -> None:
    """Hash all that DVC's cache holds of a content, and bring back what is damaged.

    Raises:
        NotCachedError: the cache does not hold that content, or not all of it.
        DamagedError: an object in the cache is damaged, and no other place has it.
    """
    with repository() as repo:
        secure(repo, md5, what)


def secure(repo: "Repo", md5: str, what: str, wanted: Callable[[Files], Files] | None = None) -> Files:
    """Hash what DVC's cache holds of a content, bring back what is damaged, and give the content's files.

    Args:
        repo: the repository.
        md5: the hash as dvc.lock has it.
        what: what a sentence calls it.
        wanted: chooses the files that are hashed; without it all are.

    Raises:
        NotCachedError: the cache does not hold them.
        DamagedError: an object in the cache is damaged, and no other place has it.
    """
    if md5.endswith(FOLDER):
        _need(repo, {md5: ""}, md5, what)  # the listing, which names the others
    files = listed(repo, md5)
    chosen = wanted(files) if wanted else files
    _need(repo, {oid: name for name, oid in chosen.items()}, md5, what)
    return files


def hashed(path: Path, ignore: Any = None) -> Hashed:  # noqa: ANN401 (DVC's)
    """Hash a file or folder as DVC does, but from its bytes: nothing that DVC remembers is asked."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.fs.local import localfs

    place = str(path.absolute())
    forgetful: Any = LocalHashFileDB
    _, _, content = build(forgetful(localfs, place), place, localfs, "md5", dry_run=True, ignore=ignore)
    md5 = str(content.hash_info.value)
    return Hashed(md5, _files(content), content.as_bytes()) if isinstance(content, Tree) else Hashed(md5, {"": md5})


def listed(repo: "Repo", md5: str) -> Files:
    """Read which files a content in the cache has.

    Raises:
        FileNotFoundError: the cache lacks the listing of a folder; dvc_objects' ObjectFormatError: it is none.
    """
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    return _files(Tree.load(repo.cache.local, HashInfo("md5", md5))) if md5.endswith(FOLDER) else {"": md5}


def object_path(repo: "Repo", oid: str) -> Path:
    """Tell where the cache keeps an object."""
    return Path(repo.cache.local.oid_to_path(oid))


def is_intact(repo: "Repo", oid: str) -> bool | None:
    """Hash an object in the cache; None where there is none."""
    try:
        return _md5(object_path(repo, oid)) == oid.removesuffix(FOLDER)
    except FileNotFoundError:
        return None


def named(what: str, names: Iterable[str]) -> str:
    """Name a file of a content, and how many others there are; the empty name is the content itself."""
    first, *others = [*names] or [""]
    more = f" (and {len(others)} more)" if others else ""
    return f"{first}{more} of {what}" if first else what


def _need(repo: "Repo", names: Mapping[str, str], md5: str, what: str) -> None:
    """Have objects intact in the cache; each has a name within the content that has the hash `md5`."""
    found = _look(repo, names)
    damaged = [oid for oid, intact in found.items() if intact is False]
    if damaged:
        aside = [_set_aside(repo, oid) for oid in damaged]
        _bring_back(repo, damaged)
        lost = [oid for oid, intact in _look(repo, damaged).items() if not intact]
        shown = named(what, [names[oid] for oid in lost or damaged])
        if lost:
            raise DamagedError(f"{shown} is damaged in DVC's cache (what was there is {aside[0]} now): {_cure(md5)}")
        logger.warning("%s was damaged in DVC's cache, and is repaired", shown)
    if None in found.values():
        raise NotCachedError(f"DVC's cache lacks {md5} (wanted as {what})", how_to_fetch(repo))


def how_to_fetch(repo: "Repo") -> str:
    """Say how to bring what DVC's cache lacks; without a remote, fetching would only fail."""
    fetch = "run dvc fetch --all-commits"
    has_remote = bool(repo.config.get("remote"))
    return fetch if has_remote else f"{fetch} once a remote that has it is named (dvc remote add -d NAME ADDRESS)"


def _cure(md5: str) -> str:
    made = _path(md5)
    if made:
        return f"delete {made} and run trueline run, which makes it again"
    return "run dvc fetch --all-commits, or check out the commit that made it (trueline why) and run trueline run"


def _path(md5: str) -> str | None:
    """Tell which output dvc.lock has with this hash."""
    return next((path for path, recorded in recorded_outputs().items() if recorded == md5), None)


def _look(repo: "Repo", oids: Iterable[str]) -> dict[str, bool | None]:
    """Tell of each object whether it is intact (None: absent); several are hashed at once."""
    names = list(oids)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda oid: is_intact(repo, oid), names), strict=True))


def _set_aside(repo: "Repo", oid: str) -> Path:
    """Keep a damaged object where DVC does not look: a stage that runs again would not replace it."""
    DAMAGED.mkdir(parents=True, exist_ok=True)
    shutil.move(object_path(repo, oid), DAMAGED / oid)
    return DAMAGED / oid


def _bring_back(repo: "Repo", oids: Sequence[str]) -> None:
    """Put objects into the cache again of which the working folder or DVC's remote has an intact copy."""
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.hash_info import HashInfo

    left = [oid for oid in oids if not take_from_working_folder(repo, oid)]
    if left and repo.config["core"].get("remote"):
        try:
            repo.cloud.pull([HashInfo("md5", oid) for oid in left])
        except (DvcException, OSError) as error:
            logger.warning("DVC's remote does not give it: %s", error)
        for oid, intact in _look(repo, left).items():
            if intact is False:  # the remote's is damaged too, and must not be what DVC restores next
                _set_aside(repo, oid)


def take_from_working_folder(repo: "Repo", oid: str) -> bool:
    """Put an object into the cache that an output in the working folder has intact; tell whether one has."""
    source = _in_working_folder(repo, oid)
    if source is None:
        return False
    with replacing(object_path(repo, oid)) as draft:
        if isinstance(source, bytes):
            draft.write_bytes(source)
        else:
            shutil.copyfile(source, draft)
    repo.cache.local.protect(str(object_path(repo, oid)))
    return True


def _in_working_folder(repo: "Repo", oid: str) -> Path | bytes | None:
    """Find an object in the output that dvc.lock has it in, where that is intact: a file, or a folder's listing."""
    for path, md5 in recorded_outputs().items():
        place = Path(path)
        if md5 == oid and oid.endswith(FOLDER):
            found = hashed(place) if place.is_dir() else None
            if found and found.md5 == oid:
                return found.listing
        elif not md5.endswith(FOLDER) or is_intact(repo, md5):
            for name in (name for name, recorded in listed(repo, md5).items() if recorded == oid):
                if (place / name).is_file() and _md5(place / name) == oid:
                    return place / name
    return None


def _files(tree: Iterable[Any]) -> Files:
    return {"/".join(key): str(info.value) for key, _, info in tree}


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()
