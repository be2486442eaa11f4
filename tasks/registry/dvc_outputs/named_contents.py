"""The contents that files in git name: what a checkout, branch, tag or DVC experiment can bring back."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.stages import LOCK_FILE, needs_git

DEPENDENCIES = re.compile(rb"(?m)^( *)deps:\n(?:\1[- ].*\n?)*")
HASH = re.compile(rb"\b[0-9a-f]{32}(?:\.dir)?\b")  # of dependencies too, and in whatever layout DVC has written
REFS = ("refs/heads", "refs/remotes", "refs/tags", "refs/exps", "refs/stash")
OWN_SUFFIX = ".dvc"  # of the files that `dvc add` writes
EXPERIMENTS = Path(".dvc/tmp/exps")  # copies of the checkout, in which `dvc exp run --temp` works


class Named(NamedTuple):
    """The hashes in files of DVC."""

    contents: set[str]  # all
    outputs: set[str]  # without those that only dependencies have: code, which git keeps


def named_contents() -> dict[str, Named]:
    """Find the hashes in every dvc.lock and .dvc file of this checkout, its git worktrees and its refs.

    Returns:
        The hashes as dvc.lock has them, by where they stand: `dvc.lock here`, `HEAD`, `origin/main` …

    Raises:
        InputError: git cannot be asked.
    """
    found = {"dvc.lock here": _in_folder(Path())}
    for copy in sorted(EXPERIMENTS.glob("*")):
        found[f"experiment {copy.name}"] = _in_folder(copy)
    if not needs_git():
        return found
    for tree in _worktrees():
        found[f"worktree {tree}"] = _in_folder(tree)
    return found | _in_refs()


def _in_folder(folder: Path) -> Named:
    return _named(file.read_bytes() for file in _lock_files(folder))


def _lock_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if _is_lock(name))


def _is_lock(name: str) -> bool:
    return name == LOCK_FILE.name or (name.endswith(OWN_SUFFIX) and name != OWN_SUFFIX)


def _named(files: Iterable[bytes]) -> Named:
    contents, outputs = set[str](), set[str]()
    for file in files:
        contents |= _hashes(file)
        outputs |= _hashes(DEPENDENCIES.sub(b"", file))
    return Named(contents, outputs)


def _hashes(content: bytes) -> set[str]:
    return {found.decode() for found in HASH.findall(content)}


def _worktrees() -> list[Path]:
    listed = _git("worktree", "list", "--porcelain").decode(errors="surrogateescape").splitlines()
    trees = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    return [tree for tree in trees if tree.is_dir() and tree.resolve() != Path.cwd()]


def _in_refs() -> dict[str, Named]:
    listed = _git("for-each-ref", "--format=%(objectname) %(refname:short)", *REFS).decode().splitlines()
    commits = {name: commit for commit, _, name in (line.partition(" ") for line in listed)}
    if head := _git("rev-parse", "--revs-only", "HEAD").decode().strip():
        commits = {"HEAD": head, **commits}
    blobs = {commit: _lock_blobs(commit) for commit in set(commits.values())}
    contents = _read_blobs({blob for each in blobs.values() for blob in each})
    found = {commit: _named(contents[blob] for blob in each) for commit, each in blobs.items()}
    return {name: found[commit] for name, commit in commits.items()}


def _lock_blobs(commit: str) -> set[str]:
    """List the objects of git that are a dvc.lock or .dvc file in a commit."""
    entries = _git("ls-tree", "-r", "-z", commit).decode(errors="surrogateescape").split("\0")
    rows = [entry.partition("\t") for entry in entries if entry]
    return {about.split()[2] for about, _, path in rows if about.split()[1] == "blob" and _is_lock(Path(path).name)}


def _read_blobs(blobs: Iterable[str]) -> dict[str, bytes]:
    return {blob: _git("cat-file", "blob", blob) for blob in blobs}


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise InputError("git is not installed, so nobody knows which results branches need: install it") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise InputError(f"git {arguments[0]} failed ({reason[0]}): repair the git repository") from error
