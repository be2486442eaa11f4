"""What DVC knows of all stages together: their order, which are stale, where their outputs lie."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.registry.dvc_outputs.stages import PIPELINE_FILE, load_stage, once_written, repository
from tasks.settings.params import PARAMS_FILE

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

MISSING = ("deleted", "not in cache")  # what DVC calls a file that a fresh clone lacks


class GraphStatus(NamedTuple):
    """All stages, looked at once."""

    changes: dict[str, list[Any]]  # of every stage, in the order of `plan`, as `dvc status` has them
    needs: dict[str, set[str]]  # the stages whose outputs a stage reads

    @property
    def stale(self) -> list[str]:
        """The stages that changed or lack an output: those that `dvc repro` would not skip now."""
        return [stage for stage, changes in self.changes.items() if changes]

    @property
    def unfinished(self) -> list[str]:
        """The stages that a run may have to do with: the stale ones, and all that depend on what these write."""
        found = set[str]()
        for stage, changes in self.changes.items():
            if changes or self.needs[stage] & found:
                found.add(stage)
        return [stage for stage in self.changes if stage in found]

    def changed(self, names: list[str]) -> list[str]:
        """Choose those of the stages whose command, dependencies, parameters or outputs changed.

        A file that is not there, as in a fresh clone, is no change: made again, it will have the same bytes.
        """
        return [name for name in names if any(map(_is_change, self.changes[name]))]


def graph_status() -> GraphStatus:
    """Look at every stage, in one process; what DVC's cache holds of a stale one is not looked at.

    Raises:
        InputError: the working folder is no DVC repository, dvc.yaml is invalid, or DVC is at work.
    """
    from dvc.repo import lock_repo

    with repository(wait=True) as repo, lock_repo(repo):
        stages = _ordered(repo)
        changes = {stage.name: stage.status(check_updates=True).get(stage.addressing, []) for stage in stages}
        needs = {stage.name: {before.addressing for before in repo.index.graph.successors(stage)} for stage in stages}
        return GraphStatus(changes, needs)


def plan() -> list[str]:
    """List the stages in the order in which `dvc repro` would run them all.

    Raises:
        InputError: the working folder is no DVC repository, or dvc.yaml is invalid.
    """
    texts = [path.read_bytes() if path.exists() else b"" for path in (Path(PIPELINE_FILE), PARAMS_FILE)]
    return [*once_written(lambda: _plan(Path.cwd(), *texts))]


@lru_cache(maxsize=1)  # DVC takes a quarter of a second to read its files, and the registry asks again and again
def _plan(_folder: Path, _pipeline: bytes, _params: bytes) -> list[str]:
    with repository() as repo:
        return [stage.name for stage in _ordered(repo)]


def stages_after(name: str) -> list[str]:
    """List a stage and all that depend on what it writes, in the order of `plan`.

    Raises:
        InputError: the working folder is no DVC repository, or dvc.yaml is invalid or has no such stage.
    """
    with repository() as repo:
        waiting, found = [load_stage(repo, name)], set[str]()
        while waiting:
            stage = waiting.pop()
            found.add(stage.name)
            waiting += repo.index.graph.predecessors(stage)  # an edge leads from a stage to what it depends on
        return [stage.name for stage in _ordered(repo) if stage.name in found]


class Places(NamedTuple):
    """Where DVC reads and writes, all absolute but the outputs."""

    outputs: list[Path]  # of all stages, from the working folder
    cache: Path  # wherever its settings say
    own: Path  # what it notes down of this repository, outside it


def places() -> Places:
    """Tell where DVC puts outputs, contents and notes.

    Raises:
        InputError: the working folder is no DVC repository, or one that needs git and has none; dvc.yaml is invalid.
    """
    with repository() as repo:
        outputs = [Path(output.def_path) for stage in repo.index.stages for output in stage.outs]
        return Places(outputs, Path(repo.cache.local.path), Path(repo.site_cache_dir))


def _ordered(repo: "Repo") -> "list[PipelineStage]":
    """Give the stages of dvc.yaml; files that were added to DVC by hand are none."""
    from dvc.repo.reproduce import get_active_graph, plan_repro
    from dvc.stage import PipelineStage

    own = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage) and stage.addressing == stage.name]
    ordered = plan_repro(get_active_graph(repo.index.graph), own)
    return [stage for stage in ordered if isinstance(stage, PipelineStage) and stage.addressing == stage.name]


def _is_change(entry: str | dict[str, dict[str, Any]]) -> bool:
    if isinstance(entry, str):  # "changed command", "always changed"
        return True
    return any(state not in MISSING for paths in entry.values() for state in paths.values())
