"""Git by its command line: one sentence where it refuses, no questions, no secrets."""

import os
import subprocess
from pathlib import Path

from tasks.common.errors import InputError
from tasks.common.safe_text import sentence
from tasks.registry.mlflow_runs.provenance import WRITTEN_BY_RUNS

RECORD = WRITTEN_BY_RUNS  # the files that a run writes and git keeps
# Nobody may be there to answer; a server that sends nothing for a minute is given up.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_EDITOR": "true",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "LC_ALL": "C",
}
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30"


class GitError(InputError):
    """Git refused."""


def git(*arguments: str) -> str:
    """Run a command of git's in the working folder, and give what it prints.

    Raises:
        GitError: it failed, in git's own words.
    """
    environment = {"GIT_SSH_COMMAND": SSH, **os.environ, **QUIET}
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise GitError("git is not installed: install it, or put it on PATH") from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise GitError(f"git {arguments[0]} failed: {sentence(words)}")
    return done.stdout


def answers(*arguments: str) -> str | None:
    """Give what a command prints, without the line's end; None where it fails."""
    try:
        return git(*arguments).rstrip("\n")
    except GitError:
        return None


class Upstream:
    """The branch of a remote that the working folder's branch follows."""

    def __init__(self) -> None:
        """Find it.

        Raises:
            GitError: there is no repository, no branch or no upstream.
        """
        if answers("rev-parse", "--git-dir") is None:
            raise GitError(f"{Path.cwd()} is in no git repository: run git init, and git remote add origin ADDRESS")
        branch = answers("symbolic-ref", "--short", "-q", "HEAD")
        if branch is None:
            raise GitError("git is on no branch (detached HEAD): git switch BRANCH first")
        self.branch = branch
        self.remote = answers("config", f"branch.{branch}.remote") or ""
        self.there = answers("config", f"branch.{branch}.merge") or ""  # its full name over there
        if not self.remote or not self.there:
            remotes = (answers("remote") or "").split()
            add = "" if remotes else "git remote add origin ADDRESS, then "
            name = remotes[0] if remotes else "origin"
            raise GitError(f"branch {branch} has no upstream to push to: {add}git push -u {name} {branch} once")

    def fetch(self) -> str:
        """Fetch it, and give its commit.

        Raises:
            GitError: the remote does not answer, or lacks the branch.
        """
        git("fetch", "-q", self.remote, self.there)
        return git("rev-parse", "FETCH_HEAD").strip()

    def push(self) -> None:
        """Push HEAD there, never by force.

        Raises:
            GitError: the remote refuses.
        """
        git("push", "-q", self.remote, f"HEAD:{self.there}")


def check_identity() -> None:
    """Make sure that git knows who commits.

    Raises:
        GitError: it does not.
    """
    if answers("var", "GIT_COMMITTER_IDENT") is None:
        raise GitError("git does not know who commits: git config user.name NAME, git config user.email ADDRESS")


def changed(*names: str) -> list[str]:
    """List the files that differ from the last commit, or that it does not have; of `names`, else of all."""
    lines = git("status", "--porcelain", "-z", "--untracked-files=all", "--", *names).split("\0")
    found, skip = [], False
    for line in lines:
        if skip or not line:
            skip = False
            continue
        skip = line[0] in "RC"  # followed by the former name
        found.append(line[3:])
    return found


def commit_record(message: str) -> list[str]:
    """Commit what a run has written, and nothing else that is staged or changed; gives the files, perhaps none.

    Raises:
        GitError: git refuses, as where a file is ignored or nobody is known to commit.
    """
    files = [name for name in RECORD if Path(name).exists()]
    if not files:
        return []
    git("add", "--", *files)
    written = [name for name in changed(*files) if name in files]
    if written:
        check_identity()
        # Hooks look at code, and there is none in these files.
        git("commit", "-q", "--no-verify", "-m", message, "--", *written)
    return written
