"""Checks of the environment before a run: git, real folders, writable disks with space."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flows.prefect_server.address import named_server
from tasks.common.errors import InputError
from tasks.common.files import MODELS, STATE, read_json
from tasks.common.network import check_proxies
from tasks.common.output_folders import check_output_folders, check_real, check_writable
from tasks.common.python_files import is_python
from tasks.data.base_model.model_files import weight_files
from tasks.registry.dvc_outputs.graph import GraphStatus, Places, graph_status, places
from tasks.registry.dvc_outputs.stages import needs_git
from tasks.registry.mlflow_runs.provenance import commit_fault
from tasks.settings.params import Params
from tasks.stage import classify

GIGABYTE = 2**30
# Rows, pages, metrics and mlflow.db of a run, whatever its model.
ROOM_BESIDE_MODELS = GIGABYTE // 4
TRAINERS = ("sft", "reward", "held_out_reward", "align")
MODEL_STAGES = ("base", *TRAINERS)
WITH_OPTIMISER = 3  # weights in a checkpoint, in models: its own and AdamW's two moments
logger = logging.getLogger(__name__)
HALF_PRECISION = ("float16", "bfloat16")


class Need(NamedTuple):
    """The space that a run needs in one folder."""

    what: str
    folder: Path
    size: int  # bytes
    cure: str  # beside freeing some


def check_environment(params: Params) -> GraphStatus:
    """Look at what a run needs around it, and give what DVC says of the stages.

    Raises:
        InputError: something lacks; the sentence has the cure.
    """
    check_git()
    if needs_git() and (fault := commit_fault()):
        _warn(fault)
    check_proxies()
    known = check_locations()
    graph = graph_status()
    check_room(params, known, graph.unfinished)
    return graph


def check_git() -> None:
    """Make sure that DVC finds its repository, and git's.

    Raises:
        InputError: one lacks.
    """
    here = Path.cwd()
    if not Path(".dvc").is_dir():
        is_here = Path("dvc.yaml").exists()
        cure = "bring .dvc back (git checkout .dvc)" if is_here else "run from the folder that holds dvc.yaml"
        raise InputError(f"{here} is not the root of a DVC repository: {cure}")
    if not any(_is_repository(folder / ".git") for folder in (here, *here.parents)) and needs_git():
        raise InputError(
            f"{here} is in no git repository, which DVC needs: run git init there, and commit (runs name the commit)"
        )


@cache  # a run looks again once it knows that something is stale
def _warn(fault: str) -> None:
    logger.warning("%s", fault)


def _is_repository(git: Path) -> bool:
    return git.is_file() or (git / "HEAD").is_file()  # a worktree has a file


def check_locations() -> Places:
    """Make sure that every output lies in real folders, and that all that stages and DVC write to can be written.

    Raises:
        InputError: there is a link in the way, or a place is full or may not be written.
    """
    check_output_folders()
    try:
        known = places()
    except OSError as error:  # DVC makes folders of its own when it is asked
        raise InputError(f"DVC cannot be asked for its places: {classify(error)[1]}") from None
    for output in known.outputs:
        check_real(output)
        if output.is_mount():
            raise InputError(f"{output} is a disk of its own, which cannot be replaced: mount it elsewhere")
    elsewhere = "name another (dvc cache dir --local FOLDER)"
    check_writable("DVC's cache", known.cache, elsewhere)
    check_writable("the folder of DVC's own notes", known.own, "name another (dvc config core.site_cache_dir FOLDER)")
    check_writable("the folder", Path(".dvc").absolute(), "move the checkout")
    check_writable("the folder", STATE.absolute(), "move the checkout")
    if named_server() is None:
        home = Path(os.environ.get("PREFECT_HOME", STATE / "prefect")).absolute()
        check_writable("the home of Prefect", home, "name another in PREFECT_HOME")
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(f"there is no folder for temporary files ({error.strerror}): name one in TMPDIR") from None
    check_writable("the folder of temporary files", temporary, "name another in TMPDIR")
    return known


def check_room(params: Params, known: Places, pending: Sequence[str]) -> None:
    """Compare the space that a run needs with the free space.

    Args:
        params: all settings.
        known: where DVC writes.
        pending: the stages that the run has to do with.

    Raises:
        InputError: a disk has too little.
    """
    needs = list(_needs(params, known, pending))
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


def _needs(params: Params, known: Places, pending: Sequence[str]) -> Iterator[Need]:
    """Models of the stages that are to run, in the checkout and in the cache, and the checkpoints of one trainer.

    In the checkout a model takes the place of the one before, which DVC deletes first.
    """
    if not pending:
        return
    weights = _weights(params)
    folders = {stage: MODELS / (params.align.stage if stage == "align" else stage) for stage in MODEL_STAGES}
    models = [folders[stage] for stage in pending if stage in folders]
    counts = {MODELS / stage: getattr(params, stage).ensemble for stage in ("reward", "held_out_reward")}
    new, written = (
        sum(counts.get(folder, 1) for folder in some)
        for some in ([folder for folder in models if not folder.exists()], models)
    )
    yield Need("the checkout", Path.cwd(), new * weights + ROOM_BESIDE_MODELS, "move the checkout")
    yield Need("DVC's cache", known.cache, written * weights, "name another (dvc cache dir --local FOLDER)")
    if {*pending} & {*TRAINERS} and params.runtime.checkpoint_every and not params.lora.rank:
        learning = [_models_that_learn(params)] if "align" in pending else []
        # Members of an ensemble have checkpoints until the last one is trained.
        learning += [counts.get(MODELS / stage, 1) for stage in pending if stage in TRAINERS]
        checkpoint = WITH_OPTIMISER * weights * max(learning)
        count = params.runtime.max_checkpoints + 1  # the newest is complete before the oldest is deleted
        yield Need("the folder of checkpoints", STATE.absolute(), count * checkpoint, "lower runtime.max_checkpoints")


def _models_that_learn(params: Params) -> int:
    return 2 if params.align.stage == "ppo" and params.ppo.critic == "separate" else 1


def _weights(params: Params) -> int:
    """Bytes of a trained model, in fp32, as far as the base model tells; 0 where it is not here, or no model."""
    if is_python(params.base.source):
        shape = params.base.scratch
        return 4 * shape.hidden_size * (2 * shape.vocabulary + 12 * shape.hidden_size * shape.layers)
    source = Path(params.base.source)
    folder = source if source.is_dir() else MODELS / "base"
    try:
        size = sum((folder / file).stat().st_size for file in weight_files(folder, str(folder)))
    except (InputError, OSError):  # for base to report
        return 0
    return 2 * size if _type_of(folder) in HALF_PRECISION else size


def _type_of(folder: Path) -> object:
    try:
        config: dict[str, Any] = read_json(folder / "config.json")
    except InputError:  # for base to report
        return None
    return config.get("dtype", config.get("torch_dtype"))


def _device(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _there(folder: Path) -> Path:
    return next(each for each in [folder, *folder.parents] if each.exists())


def _shown(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE / 10 else f"{size / 2**20:.1f} MB"
