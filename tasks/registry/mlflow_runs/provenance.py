"""Where code comes from: git commit, uncommitted changes, locked libraries."""

import hashlib
import subprocess
from pathlib import Path

LOCKED_LIBRARIES = Path("requirements.lock")
# Tracked files that a run itself rewrites: they do not make the code another one.
WRITTEN_BY_RUNS = ("dvc.lock", "opponent.json", "decisions.jsonl")


def code_tags() -> dict[str, str]:
    """Describe the code in the working folder as tags: git_commit, git_dirty, lock_file; leave out what is unknown."""
    tags = {}
    if commit := _git("rev-parse", "HEAD"):
        changes = _git("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in WRITTEN_BY_RUNS))
        tags = {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}
    if LOCKED_LIBRARIES.exists():
        tags["lock_file"] = hashlib.sha256(LOCKED_LIBRARIES.read_bytes()).hexdigest()
    return tags


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git here, or nothing committed yet
        return None
    return done.stdout.strip()
