"""The dvc.lock of two machines made one: of each stage the result that belongs to the settings and files at hand."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tasks.common.files import replacing
from tasks.registry.dvc_outputs.graph import plan
from tasks.registry.dvc_outputs.stages import LOCK_FILE, load_stage, parse_lock, repository

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

# both: the same result. neither: no result is known for these settings, and ours stays until the next run.
Taken = Literal["both", "ours", "theirs", "neither"]


class MergedLock(NamedTuple):
    """Whose result dvc.lock has of each stage."""

    taken: dict[str, Taken]


def merge_locks(ours: str, theirs: str, name_opponent: Callable[[Mapping[str, str]], None]) -> MergedLock:
    """Write dvc.lock from two versions of it.

    Args:
        ours: this machine's file; empty where it has none.
        theirs: the other machine's.
        name_opponent: writes opponent.json; gets the hashes of align's outputs by path, before a stage that reads it
            is looked at.

    Raises:
        InputError: a version is damaged, or DVC cannot read the pipeline.
    """
    with replacing(LOCK_FILE) as draft:  # DVC reads the file, in which git may have left its marks
        draft.write_text(ours or theirs, encoding="utf-8")
    sides = {side: parse_lock(text) if text else {} for side, text in (("ours", ours), ("theirs", theirs))}
    taken: dict[str, Taken] = {}
    coming: dict[str, str] = {}  # outputs by path
    for name in plan():
        found = {side: entries[name] for side, entries in sides.items() if name in entries}
        if not found:
            continue
        if len(found) == 2 and found["ours"] == found["theirs"]:
            taken[name], entry = "both", found["ours"]
        else:
            matching = [side for side, entry in found.items() if _fits(name, entry, coming)]
            side = next(iter([*matching, *found]))
            taken[name], entry = (side if matching else "neither"), found[side]  # type: ignore[assignment]
        coming |= {output["path"]: output["md5"] for output in entry["outs"]}
        if name == "align":
            name_opponent({output["path"]: output["md5"] for output in entry["outs"]})
    _write(ours, theirs, [name for name, side in taken.items() if side == "theirs" or name not in sides["ours"]])
    return MergedLock(taken)


def _fits(name: str, entry: Mapping[str, Any], coming: Mapping[str, str]) -> bool:
    """Return whether a stage would run on what an entry of dvc.lock says that it ran on."""
    with repository() as repo:
        stage = load_stage(repo, name)
        return bool(entry["cmd"] == stage.cmd) and _ingredients(stage, coming) == (
            {dependency["path"]: dependency["md5"] for dependency in entry.get("deps", [])},
            entry.get("params", {}),
        )


def _ingredients(stage: "PipelineStage", coming: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    from dvc.dependency import ParamsDependency

    files: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for dependency in stage.deps:
        path = dependency.def_path
        if isinstance(dependency, ParamsDependency):
            params[path] = dependency.get_hash().value
        elif path in coming:
            files[path] = coming[path]
        else:
            files[path] = dependency.get_hash().value if dependency.exists else None
    return files, params


def _write(ours: str, theirs: str, from_theirs: list[str]) -> None:
    """Write what DVC would, to the byte."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    merged, other = (parse_yaml_for_update(io.StringIO(text), str(LOCK_FILE)) for text in (ours or theirs, theirs))
    for name in from_theirs:
        merged["stages"][name] = other["stages"][name]
    with replacing(LOCK_FILE) as draft:
        Path(draft).write_text(dumps_yaml(merged), encoding="utf-8")
