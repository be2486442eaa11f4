"""What DVC's cache and its default remote hold that nothing needs, and deleting it.

DVC itself only knows what commits need (`dvc gc`); here the caller names contents, and the rest follows: a folder needs
its files, a stage the other outputs of its run. Whatever is younger than a given time stays in either place, and all
that it refers to: another checkout may have made or pushed it just now.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.errors import InputError
from tasks.common.network import S3_BULK_REFUSALS
from tasks.registry.dvc_outputs.cache import FOLDER
from tasks.registry.dvc_outputs.remote import asked, default_remote
from tasks.registry.dvc_outputs.stages import entry_ingredients, repository

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified")  # as the file systems of DVC's remotes say it
TRASH = ".trueline-gc."  # folders of the cache that a killed deletion leaves
CACHE = "DVC cache"


class Roots(NamedTuple):
    """What must stay, from which the rest follows."""

    contents: frozenset[str]  # hashes as dvc.lock has them
    keys: frozenset[str]  # content keys of stages, all of whose outputs stay


class File(NamedTuple):
    """A file in a place."""

    path: str
    size: int  # bytes
    modified: datetime | None  # None: the place does not tell


@dataclass
class Place:
    """The cache or the remote."""

    name: str
    odb: "HashFileDB"
    runs_folder: str
    objects: dict[str, File]  # by hash
    runs: dict[str, File]  # entries of the run cache, by their path in it


class Survey(NamedTuple):
    """What a place holds."""

    place: Place
    objects: list[str]  # that nothing needs, the listings of folders first
    runs: list[str]  # entries of the run cache whose outputs are gone, or go
    young: int  # objects that nothing needs and stay, because they are young

    @property
    def size(self) -> int:
        """Bytes that a deletion frees."""
        place = self.place
        return sum(place.objects[oid].size for oid in self.objects) + sum(place.runs[run].size for run in self.runs)


class Surveyed(NamedTuple):
    """What all places hold."""

    needed: frozenset[str]  # hashes of all that stays, files of folders included
    lacking: list[str]  # contents that must stay, and have no listing anywhere
    places: list[Survey]
    left_alone: str | None  # why the remote is not looked at


@contextmanager
def surveyed(roots: Roots, before: datetime) -> Iterator[Surveyed]:
    """Look at the cache and at the default remote, and keep DVC's lock for a block.

    Args:
        roots: what must stay.
        before: what is not older than this stays, too.

    Raises:
        InputError: DVC is at work, the remote cannot be asked, or a listing that must stay is damaged everywhere.
    """
    from dvc.repo import lock_repo

    with repository(wait=True) as repo, lock_repo(repo), ExitStack() as opened:
        places, left_alone = [_cache(repo)], None
        if default_remote() is not None:
            remote = opened.enter_context(asked(repo))
            left_alone = _reason_to_leave(remote)
            if left_alone is None:
                places.append(_place(f"DVC remote {remote.name}", remote.odb, remote.fs.join(remote.path, "runs")))
        runs = _read_runs(places)
        young_runs = {name for place in places for name, run in place.runs.items() if not _is_old(run, before)}
        young = {oid for place in places for oid, file in place.objects.items() if not _is_old(file, before)}
        wanted = set(roots.contents) | {oid for oid in young if oid.endswith(FOLDER)}
        for name, entry in runs.items():
            if name in young_runs:
                wanted |= {part["md5"] for part in (*entry.get("deps", []), *entry.get("outs", [])) if "md5" in part}
            elif entry_ingredients(entry).key() in roots.keys:
                wanted |= set(_outputs(entry))
        needed, lacking = _with_files(places, wanted)
        found = [_survey(place, needed, runs, before) for place in places]
        yield Surveyed(frozenset(needed), sorted(set(lacking) & roots.contents), found, left_alone)


def delete(survey: Survey) -> None:
    """Delete what nothing needs in a place; after a kill, a new survey finds what is left.

    Entries of the run cache go first and then listings: what names a file is never there without it.
    """
    place, fs = survey.place, survey.place.odb.fs
    if place.name == CACHE:
        _delete_local_runs(place, survey.runs)
    elif survey.runs:
        _remove(fs, [place.runs[run].path for run in survey.runs])
    listings = [place.objects[oid].path for oid in survey.objects if oid.endswith(FOLDER)]
    files = [place.objects[oid].path for oid in survey.objects if not oid.endswith(FOLDER)]
    for paths in (listings, files):
        if paths:
            _remove(fs, paths)
    if place.name != CACHE and survey.objects:
        from dvc_data.hashfile.db import get_index

        get_index(place.odb).clear()  # DVC remembers what a remote has


def _remove(fs: Any, paths: list[str]) -> None:  # noqa: ANN401 (DVC's, of whatever service)
    try:
        fs.remove(paths)
    except OSError as error:
        if not any(code in str(error) for code in S3_BULK_REFUSALS):
            raise
        for path in paths:
            fs.rm_file(path)


def _cache(repo: "Repo") -> Place:
    root = Path(repo.cache.legacy.path)
    for left in root.glob(f"{TRASH}*"):
        shutil.rmtree(left)
    return _place(CACHE, repo.cache.local, str(root / "runs"))


def _place(name: str, odb: "HashFileDB", runs_folder: str) -> Place:
    objects = {}
    for file in _files(odb.fs, odb.path):
        *_, first, rest = odb.fs.parts(file.path)
        if OBJECT.fullmatch(first + rest):  # else a file that is being written
            objects[first + rest] = file
    runs = {odb.fs.relpath(file.path, runs_folder).replace(os.sep, "/"): file for file in _files(odb.fs, runs_folder)}
    return Place(name, odb, runs_folder, objects, {name: run for name, run in runs.items() if name.count("/") == 2})


def _files(fs: Any, folder: str) -> Iterator[File]:  # noqa: ANN401 (DVC's, of whatever service)
    if fs.protocol == "local":
        for path in filter(Path.is_file, Path(folder).rglob("*")):
            found = path.stat()
            yield File(str(path), found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
    elif fs.exists(folder):
        for name, about in fs.fs.find(fs.fs._strip_protocol(folder), detail=True).items():
            yield File(name, int(about.get("size") or 0), modified(about))


def modified(about: Mapping[str, Any]) -> datetime | None:
    """Read from a file system's answer when a file was written last; None where it does not say."""
    found = next((about[name] for name in TIMES if about.get(name)), None)
    if isinstance(found, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(found)
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    if isinstance(found, datetime):
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _reason_to_leave(remote: Any) -> str | None:  # noqa: ANN401 (DVC's)
    if "http" in str(remote.fs.protocol):
        return f"DVC remote {remote.name} is reached over HTTP and cannot be listed: clean it where it runs"
    if remote.worktree or remote.fs.version_aware:
        return f"DVC remote {remote.name} keeps versions in the cloud: clean it by the rules of its bucket"
    return None


def _is_old(file: File, before: datetime) -> bool:
    return file.modified is not None and file.modified < before


def _read_runs(places: Iterable[Place]) -> dict[str, dict[str, Any]]:
    """Read the entries of the run cache, each once: its name is the hash of what it says."""
    found: dict[str, dict[str, Any]] = {}
    for place in places:
        for name, file in place.runs.items():
            if name not in found and (entry := _parse(_read(place, file.path))):
                found[name] = entry
    return found


def _parse(content: bytes) -> dict[str, Any] | None:
    """Read an entry of the run cache; None where it is damaged: DVC deletes it when it meets it."""
    try:
        entry = YAML(typ="safe", pure=True).load(content.decode())
        entry_ingredients(entry)
        _outputs(entry)
    except (YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        return None
    return dict(entry)


def _outputs(entry: Mapping[str, Any]) -> list[str]:
    return [output["md5"] for output in entry["outs"]]


def _read(place: Place, path: str) -> bytes:
    with place.odb.fs.open(path, "rb") as file:
        return bytes(file.read())


def _with_files(places: Iterable[Place], contents: Iterable[str]) -> tuple[set[str], list[str]]:
    """Add the files of folders to contents, and name the folders whose listing is nowhere.

    Raises:
        InputError: a listing is there, and damaged everywhere: what it names is not known.
    """
    found, lacking = set(contents), []
    for md5 in [md5 for md5 in found if md5.endswith(FOLDER)]:
        copies = [_read(place, place.objects[md5].path) for place in places if md5 in place.objects]
        intact = [copy for copy in copies if hashlib.md5(copy).hexdigest() + FOLDER == md5]
        if intact:
            found |= {str(entry["md5"]) for entry in json.loads(intact[0])}
        elif copies:
            raise InputError(
                f"DVC's listing {md5} is damaged, and what it names is not known: run dvc fetch, or dvc push"
            )
        else:
            lacking.append(md5)
    return found, lacking


def _survey(place: Place, needed: set[str], runs: Mapping[str, Mapping[str, Any]], before: datetime) -> Survey:
    unneeded = [oid for oid in place.objects if oid not in needed]
    going = [oid for oid in unneeded if _is_old(place.objects[oid], before)]
    staying = needed | (place.objects.keys() - set(going))
    old = [name for name, file in place.runs.items() if name in runs and _is_old(file, before)]
    without_outputs = [name for name in old if not staying.issuperset(_outputs(runs[name]))]
    return Survey(place, going, without_outputs, len(unneeded) - len(going))


def _delete_local_runs(place: Place, names: Iterable[str]) -> None:
    """Delete entries of the cache's own run cache; DVC fails on a folder there without an entry, so it goes as one."""
    going = set(names)
    for folder in {Path(place.runs_folder, name).parent for name in going}:
        entries = {path.relative_to(place.runs_folder).as_posix() for path in folder.iterdir()}
        if entries <= going:
            trash = tempfile.mkdtemp(prefix=TRASH, dir=Path(place.runs_folder).parent)
            folder.rename(Path(trash, folder.name))
            shutil.rmtree(trash)
        else:
            for name in entries & going:
                Path(place.runs_folder, name).unlink()
