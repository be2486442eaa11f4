"""The provenance of the code: git commit, uncommitted changes, locked libraries."""

import hashlib
import os
import shlex
import subprocess
from pathlib import Path

LOCKED_LIBRARIES = Path("requirements.lock")
# Tracked files that a run itself rewrites: a change in them is no change of the code.
WRITTEN_BY_RUNS = ("dvc.lock", "opponent.json", "decisions.jsonl")


def code_tags() -> dict[str, str]:
    """Return tags of the code in the working folder: git_commit, git_dirty, lock_file; unknown ones are left out."""
    tags = {}
    if commit := _git("rev-parse", "HEAD"):
        changes = _git("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in WRITTEN_BY_RUNS))
        tags = {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}
    if LOCKED_LIBRARIES.exists():
        tags["lock_file"] = hashlib.sha256(LOCKED_LIBRARIES.read_bytes()).hexdigest()
    return tags


def commit_fault() -> str | None:
    """Say why runs cannot name the commit of the code, and the cure; None where they can."""
    try:
        command = ["git", "rev-parse", "--verify", "HEAD"]
        subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return "git is not installed, so runs name no commit: install git"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.splitlines() or [f"exit code {error.returncode}"])[0].removeprefix("fatal: ")
        if "dubious ownership" in reason:
            cure = f"git config --global --add safe.directory {shlex.quote(str(Path.cwd()))}"
        elif "single revision" in reason:
            return "nothing is committed, so runs name no commit: commit the code"
        else:
            cure = "repair the repository (git status says more)"
        return f"git cannot read the commit that runs name ({reason}): {cure}"
    return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git here, or nothing committed yet
        return None
    return done.stdout.strip()
