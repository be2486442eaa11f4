"""What DVC's default remote holds of stages: results that can be fetched instead of being computed again.

A stage's result is found by what dvc.lock says of it, where the stage is as it was then, or else in the run cache,
which `dvc push --run-cache` takes to the remote: by the stage's command, dependencies and parameters.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.errors import InputError
from tasks.common.files import replacing
from tasks.common.safe_text import sentence, without_secrets
from tasks.registry.dvc_outputs.cache import FOLDER, listed, object_path
from tasks.registry.dvc_outputs.stages import load_stage, repository

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

# The libraries behind DVC's remotes, each with errors of its own.
CLIENTS = (
    "dvc_objects", "botocore", "aiobotocore", "azure", "google", "gcsfs", "paramiko", "asyncssh", "webdav4", "httpx",
    "aiohttp",
)  # fmt: skip
Coming = dict[str, "Output | None"]  # outputs by path, as an earlier stage will leave them; None where nobody can tell
logger = logging.getLogger(__name__)


class RemoteError(InputError):
    """DVC's remote cannot be asked."""


class StoredResult(NamedTuple):
    """A stage's result, outside the working folder."""

    outputs: Mapping[str, "Output"]  # by path
    is_cached: bool  # DVC's cache has it, and would give it back
    run: tuple[Path, bytes] | None  # the remote's entry in the run cache, and where the cache keeps it


def default_remote() -> str | None:
    """Give the name of DVC's default remote; None where there is none."""
    from dvc.config import Config

    name: str | None = Config(str(Path(".dvc")), validate=False).get("core", {}).get("remote")
    return name


def check_default_remote() -> None:
    """Make sure that DVC has a default remote.

    Raises:
        RemoteError: there is none.
    """
    if default_remote() is None:
        raise RemoteError("DVC has no default remote to fetch from: name one (dvc remote add -d NAME ADDRESS)")


def fetchable(stages: Sequence[str]) -> list[str]:
    """Name the stages whose results the default remote has, and DVC's cache lacks.

    Where an earlier stage's result is known, so is what a later one will read: nothing is fetched for the question.

    Args:
        stages: what a run has to do with, in the order of the plan.

    Raises:
        RemoteError: the remote cannot be asked.
        InputError: DVC cannot read the pipeline.
    """
    coming: Coming = {}
    found = []
    with repository(wait=True) as repo, asked(repo) as remote:
        for name in stages:
            stage = load_stage(repo, name)
            result = _find(repo, remote, stage, coming)
            coming |= {output.def_path: result.outputs[output.def_path] if result else None for output in stage.outs}
            if result and not result.is_cached:
                found.append(name)
    return found


def fetch(name: str) -> bool:
    """Bring a stage's result from the default remote into DVC's cache, from where `dvc repro` takes it.

    What the stage reads lies in the working folder by now.

    Returns:
        Whether the remote had it, and the cache did not.

    Raises:
        RemoteError: the remote cannot be asked.
        InputError: DVC cannot read the pipeline.
    """
    with repository(wait=True) as repo, asked(repo) as remote:
        result = _find(repo, remote, load_stage(repo, name), {})
        if result is None or result.is_cached:
            return False
        bring(repo, [str(output.hash_info.value) for output in result.outputs.values()])
        if result.run:
            path, entry = result.run
            with replacing(path) as draft:
                draft.write_bytes(entry)
    return True


def is_known(name: str) -> bool:
    """Whether DVC's cache or the default remote has a stage's result; what the stage reads lies in the working folder.

    Raises:
        RemoteError: the remote cannot be asked.
        InputError: DVC cannot read the pipeline.
    """
    with repository(wait=True) as repo, asked(repo) as remote:
        return _find(repo, remote, load_stage(repo, name), {}) is not None


def receive(contents: Iterable[str]) -> None:
    """Bring contents from the default remote into DVC's cache, as `bring` does.

    Raises:
        RemoteError: the remote cannot be asked.
    """
    with repository(wait=True) as repo, asked(repo):
        bring(repo, contents)


def bring(repo: "Repo", contents: Iterable[str]) -> None:
    """Bring contents from the default remote into DVC's cache, folders with their files; what it lacks stays away."""
    from dvc_data.hashfile.hash_info import HashInfo

    wanted = list(contents)
    repo.cloud.pull([HashInfo("md5", md5) for md5 in wanted])
    for md5 in wanted:
        if md5.endswith(FOLDER) and object_path(repo, md5).exists():
            repo.cloud.pull([HashInfo("md5", oid) for oid in set(listed(repo, md5).values())])


@contextmanager
def asked(repo: "Repo") -> "Iterator[Remote]":
    """Have the default remote asked, and tell of it in one sentence where that fails.

    Raises:
        RemoteError: it cannot be asked.
    """
    from dvc.exceptions import DvcException

    name = str(repo.config["core"].get("remote"))
    try:
        remote = repo.cloud.get_remote()
        if remote.fs.protocol == "local" and not Path(remote.path).is_dir():
            raise FileNotFoundError(f"{remote.path} is no folder")
        yield remote
    except InputError:
        raise
    except (DvcException, OSError, ImportError) as error:  # the last for a kind of remote that is not installed
        raise _unreachable(name, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> RemoteError:
    reason = sentence(without_secrets(f"{type(error).__name__}: {error}"))
    cure = f"correct its address or access (dvc remote modify {name}), or do without it"
    return RemoteError(f"DVC's remote {name} cannot be asked ({reason}): {cure}")


def _find(repo: "Repo", remote: "Remote", stage: "PipelineStage", coming: Coming) -> StoredResult | None:
    """Find a stage's result; None where there is none, or where nobody can tell yet what the stage will read."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    recorded = [dependency.hash_info for dependency in stage.deps]
    if not _resolve(stage, coming):
        return None
    is_as_recorded = not stage.changed_stage() and [dependency.hash_info for dependency in stage.deps] == recorded
    if is_as_recorded and all(output.hash_info for output in stage.outs):
        return _result(remote, stage.outs, None)
    folder = Path(repo.stage_cache._get_cache_dir(_get_cache_hash(to_single_stage_lockfile(stage), key=True)))
    for path, content in chain(_local_runs(folder), _remote_runs(repo, remote, folder)):
        outputs = _outputs_of(repo, stage, content)
        is_new = not path.exists()
        result = _result(remote, outputs, (path, content) if is_new else None) if outputs else None
        if result:
            return result
    return None


def _resolve(stage: "PipelineStage", coming: Coming) -> bool:
    """Give a stage's dependencies the hashes that they will have; false where one cannot be known."""
    for dependency in stage.deps:
        if dependency.def_path in coming:
            output = coming[dependency.def_path]
            if output is None:
                return False
            dependency.hash_info, dependency.meta, dependency.hash_name = (
                output.hash_info,
                output.meta,
                output.hash_name,
            )
        elif dependency.exists:
            dependency.save()
        else:
            return False
    return True


def _local_runs(folder: Path) -> list[tuple[Path, bytes]]:
    """The newest entry of DVC's own run cache: the one that it would take."""
    paths = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    return [(path, path.read_bytes()) for path in paths[-1:]]


def _remote_runs(repo: "Repo", remote: "Remote", folder: Path) -> Iterator[tuple[Path, bytes]]:
    if "http" in str(remote.fs.protocol):  # DVC keeps no run cache there
        return
    place = folder.relative_to(repo.cache.legacy.path).as_posix()
    for found in sorted(remote.fs.find(remote.fs.join(remote.path, *place.split("/")))):
        with remote.fs.open(found, "rb") as file:
            yield folder / PurePosixPath(found).name, file.read()


def _outputs_of(repo: "Repo", stage: "PipelineStage", content: bytes) -> "list[Output]":
    """Read the outputs that an entry of the run cache names; none where it is damaged or not this stage's."""
    try:
        entry: Any = YAML(typ="safe", pure=True).load(content.decode())
        outputs: list[Output] = repo.stage_cache._create_stage(entry, wdir=stage.wdir).outs
    except (YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        logger.warning("an entry of the run cache for %s is damaged, and is not used", stage.name)
        return []
    own = {output.def_path for output in stage.outs}
    return outputs if entry["cmd"] == stage.cmd and {output.def_path for output in outputs} == own else []


def _result(remote: "Remote", outputs: "Sequence[Output]", run: tuple[Path, bytes] | None) -> StoredResult | None:
    by_path = {output.def_path: output for output in outputs}
    if all(not output.changed_cache() for output in outputs):
        return StoredResult(by_path, run is None, run)
    # Of a folder, DVC sends the listing last.
    is_there = all(remote.odb.exists(str(output.hash_info.value)) for output in outputs)
    return StoredResult(by_path, False, run) if is_there else None
