"""Holding files against the record before anybody uses them: a stage, a person who talks to a model, the registry.

DVC knows a file in the working folder by its size and time, and one that it took from its cache by the name that it had
there. Here the bytes are read, once, where they enter or leave. A damaged file is replaced by an intact
copy; where there is none, it is reported, and DVC is made to look at it anew, so that the next run makes it again.
"""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.files import replacing
from tasks.registry.dvc_outputs.cache import (
    DAMAGED,
    DamagedError,
    Files,
    NotCachedError,
    hashed,
    is_intact,
    listed,
    named,
    object_path,
    secure,
)
from tasks.registry.dvc_outputs.stages import (
    current_hash,
    in_repository,
    load_stage,
    lock_entry,
    output_hash,
    recorded_outputs,
    repository,
    stage_name,
)

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

logger = logging.getLogger(__name__)


def check_inputs(stage: str) -> None:
    """Hash what a stage is about to read, and repair what is not what DVC takes it for.

    Raises:
        InputError: dvc.yaml has no such stage.
        DamagedError: a file is damaged, and no copy is intact.
    """
    from dvc.dependency import ParamsDependency

    if not in_repository():
        return
    with repository() as repo:
        for dependency in load_stage(repo, stage).deps:
            if not isinstance(dependency, ParamsDependency) and dependency.exists:
                _check(repo, dependency)


def check_outputs(stage: str, only: Path | None = None) -> None:
    """Do the same with what a stage has written, or one path of it, as where DVC's cache has given it back.

    Raises:
        InputError: dvc.yaml has no such stage.
        DamagedError: a file is damaged, and no copy is intact.
    """
    if not in_repository() or lock_entry(stage) is None:
        return
    with repository() as repo:
        for output in load_stage(repo, stage).outs:
            if output.exists and only in (None, Path(output.def_path)):
                _check(repo, output)


def recorded_output(stage: str, path: Path) -> str:
    """Hold an output of a stage against dvc.lock, and give the hash that it has there.

    Raises:
        InputError: dvc.lock has no such output, or it is another.
        DamagedError: it is damaged, and no copy is intact.
    """
    check_outputs(stage, path)
    md5 = output_hash(stage, path)
    if md5 is None:
        raise InputError(f"dvc.lock has no {path}: run trueline run")
    if (found := current_hash(stage, path)) != md5:
        hashes = _both_hashes(md5, str(found))
        raise InputError(f"{path} was changed ({hashes}): run trueline run, which makes it again")
    return md5


def check_folder(folder: Path, md5: str) -> None:
    """Hash a folder that was written from DVC's cache.

    Raises:
        DamagedError: it does not have the hash that it had there.
    """
    with repository() as repo:
        found = hashed(folder)
        if found.md5 != md5:
            changed = _differing(listed(repo, md5), found.files) if is_intact(repo, md5) else []
            raise DamagedError(f"{named(str(folder), changed)} is damaged ({_both_hashes(md5, found.md5)})")


def restore_outputs(stage: str) -> None:
    """Bring a stage's outputs back from DVC's cache, as dvc.lock has them, from inside the failing stage.

    DVC deletes outputs before it runs a stage; outside a DVC run it has deleted none, and only what is missing
    is brought back. The running DVC holds the stage's lock, so the outputs are checked out one by one without it.
    Nothing happens outside a repository or where the stage has never run; what the cache lacks is left alone.
    What came back is hashed last of all, since what ends the stage may not wait; first only what DVC would delete.
    """
    if not in_repository() or lock_entry(stage) is None:
        return
    runs_in_dvc = os.environ.get("DVC_STAGE") == stage_name(stage)
    restored: list[Output] = []
    with repository() as repo:
        outputs = [output for output in load_stage(repo, stage).outs if output.hash_info]
        for output in outputs if runs_in_dvc else ():
            if output.exists:
                output.remove()  # half-written: it may be what fills the disk
        for output in outputs:
            if not (runs_in_dvc or not output.exists):
                continue
            try:
                secure(repo, str(output.hash_info.value), output.def_path, lambda files: _unprotected(repo, files))
                output.checkout(force=True)
                restored.append(output)
            except NotCachedError:
                logger.warning("%s is not in DVC's cache and cannot be brought back: run dvc pull", output.def_path)
            except DamagedError as error:
                logger.warning("%s", error)
        for output in restored:
            try:
                _check(repo, output)
            except DamagedError as error:
                logger.warning("%s", error)


def _check(repo: "Repo", output: "Output") -> None:
    """Hash a dependency or output in the working folder, and repair it."""
    if output.hash_name != "md5":  # of text with other line ends, as old .dvc files have it
        return
    path, believed = Path(output.def_path), str(output.get_hash().value)
    found = hashed(path, output.dvcignore)
    if found.md5 == believed:
        return
    changed: list[str] = []

    def choose(known: Files) -> Files:
        changed.extend(_differing(known, found.files))
        return {name: known[name] for name in changed if name in known}

    try:
        known = secure(repo, believed, str(path), choose)
        for name in changed:
            _set_aside(path / name, found.files.get(name))
            if name in known:
                with replacing(path / name) as draft:
                    shutil.copyfile(object_path(repo, known[name]), draft)
    except (NotCachedError, DamagedError) as error:
        for place in [path / name for name in changed or found.files]:
            with suppress(OSError):
                os.utime(place)  # DVC looks again at what has another time
        shown, is_made = named(str(path), changed), path.as_posix() in recorded_outputs()
        by_hand = "bring it back from where it came, or run again to take it as it is"
        cure = "run trueline run, which makes it again" if is_made else by_hand
        raise DamagedError(f"{shown} is damaged ({_both_hashes(believed, found.md5)}): {cure}") from error
    logger.warning("%s was damaged, and is as the record says again", named(str(path), changed))


def _set_aside(place: Path, md5: str | None) -> None:
    """Nothing is deleted, were it only that a tool has set a file's time back after it had changed it."""
    if md5 and place.is_symlink():
        place.unlink()  # to the cache, whose own copy is set aside
    elif md5:
        DAMAGED.mkdir(parents=True, exist_ok=True)
        shutil.move(place, DAMAGED / md5)


def _unprotected(repo: "Repo", files: Files) -> Files:
    """Choose the files that DVC would hash itself, and delete where they are damaged, or that it does not have."""
    trusted = repo.cache.local.is_protected
    return {name: oid for name, oid in files.items() if not trusted(str(object_path(repo, oid)))}


def _differing(known: Files, found: Files) -> list[str]:
    return sorted(name for name in {*known, *found} if known.get(name) != found.get(name))


def _both_hashes(recorded: str, found: str) -> str:
    return f"its md5 is {found}, on record is {recorded}"
