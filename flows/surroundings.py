"""What a run needs around it: git, real folders, disks that may be written and have room. Said before the work."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tasks.data.files import MODELS, STATE, read_json
from tasks.errors import InputError
from tasks.params import EXAMPLE, Params
from tasks.places import check_places, check_real, check_writable
from tasks.registry.stages import Places, needs_git, places, unfinished_stages

GIGABYTE = 2**30
# Rows, pages, metrics and mlflow.db of a run, whatever its model.
ROOM_BESIDE_MODELS = GIGABYTE // 4
MODEL_STAGES = ("base", "sft", "reward", "judge", "align")
HALF_PRECISION = ("float16", "bfloat16")


class Need(NamedTuple):
    """What a run will write to one place."""

    what: str
    folder: Path
    size: int  # bytes
    cure: str  # beside freeing some


def check_surroundings(params: Params) -> None:
    """Look at what a run needs around it.

    Raises:
        InputError: something lacks; the sentence has the cure.
    """
    check_git()
    look_at_places()
    check_room(params, places())


def check_git() -> None:
    """Make sure that DVC finds its repository, and git's.

    Raises:
        InputError: one lacks.
    """
    here = Path.cwd()
    if not Path(".dvc").is_dir():
        raise InputError(f"{here} is not the root of a DVC repository: run from the folder that holds dvc.yaml")
    if not any((folder / ".git").exists() for folder in (here, *here.parents)) and needs_git():
        raise InputError(
            f"{here} is in no git repository, which DVC needs: run git init there, and commit (runs name the commit)"
        )


def look_at_places() -> None:
    """Make sure that every output lies in real folders, and that all that stages and DVC write to can be written.

    Raises:
        InputError: there is a link in the way, or a place is full or may not be written.
    """
    check_places()
    known = places()
    for output in known.outputs:
        check_real(output)
        if output.is_mount():
            raise InputError(f"{output} is a disk of its own, which cannot be replaced: mount it elsewhere")
    elsewhere = "name another (dvc cache dir --local FOLDER)"
    check_writable("DVC's cache", known.cache, elsewhere)
    check_writable("the folder of DVC's own notes", known.own, "name another (dvc config core.site_cache_dir FOLDER)")
    check_writable("the folder", Path(".dvc").absolute(), "move the checkout")
    check_writable("the folder", STATE.absolute(), "move the checkout")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(f"there is no folder for temporary files ({error.strerror}): name one in TMPDIR") from None
    check_writable("the folder of temporary files", temporary, "name another in TMPDIR")


def check_room(params: Params, known: Places) -> None:
    """Compare what a run will write with what is free.

    Raises:
        InputError: a disk has too little.
    """
    needs = list(_needs(params, known))
    wanted = Counter[int]()
    for need in needs:
        wanted[_device(need.folder)] += need.size
    for need in needs:
        size, free = wanted[_device(need.folder)], free_bytes(need.folder)
        if free < size:
            raise InputError(
                f"the disk of {need.what} {need.folder} has {_shown(free)} free, and this run will write about "
                f"{_shown(size)} there: free some of it, or {need.cure}"
            )


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to a folder's disk; of the nearest folder above one that does not exist."""
    found = os.statvfs(_there(folder))
    return found.f_bavail * found.f_frsize


def _needs(params: Params, known: Places) -> Iterator[Need]:
    """Models of the stages that are to run, in the checkout and in the cache, and the checkpoints of one trainer."""
    pending = unfinished_stages()
    models = [stage for stage in pending if stage in MODEL_STAGES]
    weights = _weights(params)
    checkpoint = (
        0 if params.lora.rank or not params.runtime.checkpoint_every else 3 * weights
    )  # with AdamW's two moments
    if "align" in pending and params.align.method == "ppo" and params.ppo.critic == "own":
        checkpoint *= 2
    trains = any(stage != "base" for stage in models)
    kept = (params.runtime.checkpoints_kept + 1) * checkpoint if trains else 0
    size = len(models) * weights
    if pending:
        yield Need("the checkout", Path.cwd(), size + ROOM_BESIDE_MODELS, "move the checkout")
        yield Need("DVC's cache", known.cache, size, "name another (dvc cache dir --local FOLDER)")
        yield Need("the folder of checkpoints", STATE.absolute(), kept, "lower runtime.checkpoints_kept")


def _weights(params: Params) -> int:
    """Bytes of a trained model, in fp32, as far as the base model tells; 0 where it is not here yet."""
    if params.base.source == EXAMPLE:
        shape = params.base.scratch
        return 4 * shape.hidden_size * (2 * shape.vocabulary + 12 * shape.hidden_size * shape.layers)
    source = Path(params.base.source)
    folder = source if source.is_dir() else MODELS / "base"
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return 2 * size if size and _type_of(folder) in HALF_PRECISION else size


def _type_of(folder: Path) -> object:
    try:
        config: dict[str, Any] = read_json(folder / "config.json")
    except InputError:  # for base to judge
        return None
    return config.get("dtype", config.get("torch_dtype"))


def _device(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _there(folder: Path) -> Path:
    return next(each for each in [folder, *folder.parents] if each.exists())


def _shown(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE / 10 else f"{size / 2**20:.1f} MB"
