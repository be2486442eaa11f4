"""What DVC knows of a stage: key, hashes, entry in dvc.lock. Of all stages together graph.py tells.

Only the modules of this package touch DVC's internals; their tests hold them to what is used here.
Everything is resolved from the working folder, never from DVC_ROOT: inside `dvc exp run --temp` that names
another checkout.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.errors import InputError
from tasks.methods import STAGES
from tasks.settings.fingerprint import Fingerprint, flatten

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

LOCK_FILE = Path("dvc.lock")
PIPELINE_FILE = "dvc.yaml"
SECONDS_TO_WRITE = 2.0  # DVC needs a tenth

Content = TypeVar("Content")
logger = logging.getLogger(__name__)


def stage_name(stage: str) -> str:
    """Give the name of the DVC stage that runs `stage`: `align` for one that aligns, else the same."""
    return "align" if stage in STAGES else stage


def in_repository() -> bool:
    """Tell whether the working folder is the root of a DVC repository."""
    return Path(".dvc").is_dir()


def needs_git() -> bool:
    """Tell whether DVC needs a git repository around this one: all do but those that say core.no_scm."""
    from dvc.config import Config

    return not Config(str(Path(".dvc")), validate=False).get("core", {}).get("no_scm", False)


class Ingredients(NamedTuple):
    """All that a stage's outputs follow from: its command, the hash of each dependency, its parameters by file."""

    command: str
    dependencies: dict[str, str]
    params: dict[str, dict[str, Any]]

    def key(self) -> str:
        """Give the content key: sha256 over canonical JSON, 64 hexadecimal digits."""
        content = {"cmd": self.command, "deps": self.dependencies, "params": self.params}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def current_ingredients(stage: str) -> Ingredients | None:
    """Hash what a stage is about to run on, as it lies in the working folder; None outside a DVC repository.

    Raises:
        InputError: dvc.yaml has no such stage, or a dependency or parameter does not exist.
    """
    if not in_repository():
        return None
    with repository() as repo:
        return _hash_dependencies(load_stage(repo, stage))


def locked_ingredients(stage: str) -> Ingredients | None:
    """Read from dvc.lock what a stage last ran on; None where it has never run."""
    entry = lock_entry(stage)
    return None if entry is None else entry_ingredients(entry)


def entry_ingredients(entry: Mapping[str, Any]) -> Ingredients:
    """Read what a stage ran on from its entry in dvc.lock or in the run cache."""
    dependencies = {dependency["path"]: dependency["md5"] for dependency in entry.get("deps", [])}
    return Ingredients(entry["cmd"], dependencies, entry.get("params", {}))


def stage_fingerprint(stage: str) -> Fingerprint | None:
    """Find out what a stage's result will follow from, its command apart; None outside a DVC repository.

    Raises:
        InputError: dvc.yaml has no such stage, or a dependency or parameter does not exist.
    """
    ingredients = current_ingredients(stage)
    return Fingerprint(flatten(ingredients.params), ingredients.dependencies) if ingredients else None


def lock_key(stage: str) -> str | None:
    """Recompute a stage's content key from dvc.lock; None where the stage has never run."""
    ingredients = locked_ingredients(stage)
    return ingredients.key() if ingredients else None


def lock_entry(stage: str) -> dict[str, Any] | None:
    """Read what dvc.lock holds of a stage (cmd, deps, params, outs), or None where the stage has never run.

    Raises:
        InputError: dvc.lock is damaged.
    """
    return _lock_entries().get(stage_name(stage))


def output_hashes(stage: str) -> dict[str, str]:
    """Give the hash of every output of a stage by its path, as dvc.lock has them; empty where it never ran."""
    entry = lock_entry(stage) or {}
    return {output["path"]: output["md5"] for output in entry.get("outs", [])}


def recorded_outputs() -> dict[str, str]:
    """Give the hash of every output of every stage in dvc.lock, by its path."""
    return {output["path"]: output["md5"] for entry in _lock_entries().values() for output in entry.get("outs", [])}


def output_hash(stage: str, path: Path) -> str | None:
    """Give the hash of one output as dvc.lock has it (`<md5>.dir` for a folder), or None where it has none."""
    return output_hashes(stage).get(path.as_posix())


def current_hash(stage: str, path: Path) -> str | None:
    """Hash an output of a stage as it lies in the working folder, as DVC will when the stage ends.

    Returns:
        The hash (`<md5>.dir` for a folder); None outside a repository, or where the stage has no such output.
    """
    if not in_repository():
        return None
    with repository() as repo:
        for output in load_stage(repo, stage).outs:
            if output.def_path == path.as_posix():
                return str(output.get_hash().value)
    return None


def once_written(read: Callable[[], Content]) -> Content:
    """Read what depends on dvc.lock; DVC writes it in place, so what fails just after that is read again.

    Raises:
        InputError: that of `read`, about a file that has lain there for a while.
    """
    while True:
        try:
            return read()
        except InputError:
            if not LOCK_FILE.exists() or time.time() - LOCK_FILE.stat().st_mtime > SECONDS_TO_WRITE:
                raise
        time.sleep(0.1)


def _lock_entries() -> dict[str, dict[str, Any]]:
    return once_written(lambda: parse_lock(LOCK_FILE.read_text(encoding="utf-8")) if LOCK_FILE.exists() else {})


@lru_cache(maxsize=1)  # YAML is slow, and a question to the registry reads the same text dozens of times
def parse_lock(text: str) -> dict[str, dict[str, Any]]:
    """Read what dvc.lock has of each stage.

    Raises:
        InputError: it is damaged.
    """
    try:
        # YAML 1.2, as DVC writes it: in PyYAML's 1.1 its 5e-05 would be a text, and the key another.
        entries = YAML(typ="safe", pure=True).load(text)["stages"]
    except (YAMLError, TypeError, KeyError):
        entries = None
    if not isinstance(entries, dict):
        raise InputError(f"{LOCK_FILE} is damaged: restore it from git, or delete it and run dvc repro")
    return entries


@contextmanager
def repository(*, wait: bool = False) -> Iterator["Repo"]:
    """Open the DVC repository in the working folder.

    Args:
        wait: whether to wait for another command of DVC's that holds its lock; else that is an error.

    Raises:
        InputError: there is none, or DVC fails, in its own words.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not in_repository():
        raise InputError(f"{Path.cwd()} is not the root of a DVC repository: run from the folder that holds .dvc")
    try:
        with Repo(str(Path.cwd()), _wait_for_lock=wait) as repo:
            yield repo
    except DvcException as error:
        raise InputError(f"DVC in {Path.cwd()} says: {error}") from error


def load_stage(repo: "Repo", stage: str) -> "PipelineStage":
    """Read a stage of dvc.yaml, with what dvc.lock says of it."""
    return repo.stage.load_one(PIPELINE_FILE, stage_name(stage))


def _hash_dependencies(stage: "PipelineStage") -> Ingredients:
    from dvc.dependency import ParamsDependency

    ingredients = Ingredients(stage.cmd, {}, {})
    for dependency in stage.deps:
        if not dependency.exists:
            raise InputError(f"{dependency.def_path} does not exist: run the stage that writes it (dvc repro)")
        kind = ingredients.params if isinstance(dependency, ParamsDependency) else ingredients.dependencies
        kind[dependency.def_path] = dependency.get_hash().value
    return ingredients
