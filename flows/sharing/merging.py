"""Bringing two machines' records together: decisions.jsonl, dvc.lock and opponent.json of both, made one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from flows.sharing.git import RECORD, GitError, Upstream, answers, check_identity, commit_record, git
from tasks.common.errors import InputError
from tasks.common.files import MODELS, replacing, write_json
from tasks.registry.dvc_outputs.merged_lock import Taken, merge_locks
from tasks.registry.dvc_outputs.stages import LOCK_FILE, output_hashes
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.apply_decisions import applied_decision
from tasks.registry.promotion.candidate import OPPONENT_FILE, SFT_OPPONENT
from tasks.registry.promotion.decision_log import DECISIONS
from tasks.registry.promotion.decisions import log_lock
from tasks.registry.promotion.merged_log import MergedLog, last_move, merge_logs
from tasks.registry.promotion.opponent import opponent_entry
from tasks.settings.params import Params, load_params

HEADS = ("MERGE_HEAD", "REBASE_HEAD", "CHERRY_PICK_HEAD")  # the other side of what git has under way
MARKS = (b"<<<<<<<", b"|||||||", b"=======", b">>>>>>>")
logger = logging.getLogger(__name__)


class Merged(TypedDict):
    """What came of it."""

    commits: int  # that this machine lacked
    decisions: int  # of these
    stages: dict[str, Taken]  # whose result dvc.lock has now, where both had written one
    conflicts: list[str]  # for a person, a sentence each
    next: str | None  # the command that ends what git has under way


def merge(*, only_record: bool = False) -> Merged:
    """Take in what another machine has pushed, or end the merge that git has under way.

    What this machine has recorded is committed first.

    Args:
        only_record: whether to refuse changes of any other file.

    Raises:
        InputError: git refuses, or a file that no run writes is in conflict.
    """
    git("--version")  # where it is not installed, what follows would find nothing to do
    other = under_way()
    if other:
        return resolve(other)
    conflicts = _put_in_order()
    if answers("rev-parse", "-q", "--verify", "HEAD") is None or not answers("remote"):
        return _nothing(conflicts)
    upstream = Upstream()
    commit_record("Record what this machine has decided")
    merged = take_in(upstream, only_record=only_record)
    return {**merged, "conflicts": [*conflicts, *merged["conflicts"]]}


def under_way() -> str | None:
    """Return the commit that git is merging, picking or rebasing; None where it is not."""
    return next((commit for head in HEADS if (commit := answers("rev-parse", "-q", "--verify", head))), None)


def take_in(upstream: Upstream, *, only_record: bool = False) -> Merged:
    """Fetch the upstream and merge it.

    Args:
        upstream: the branch.
        only_record: whether to refuse changes of any other file: these are for a person to take.

    Raises:
        InputError: git refuses, or a file that no run writes is in conflict.
    """
    theirs = upstream.fetch()
    count = int(git("rev-list", "--count", f"HEAD..{theirs}"))
    if not count:
        return _nothing([])
    files = [name for name in git("diff", "--name-only", "-z", f"HEAD...{theirs}").split("\0") if name]
    others = [name for name in files if name not in RECORD]
    if only_record and others:
        raise GitError(
            f"{upstream.remote} has commits that change {_some(others)}: run trueline merge, then trueline publish"
        )
    check_identity()
    try:
        git("merge", "-q", "--no-commit", "--no-ff", theirs)
    except GitError:
        if under_way() is None:  # refused before it began, as where a changed file would be overwritten
            raise
    return {**resolve(theirs), "commits": count}


def resolve(other: str) -> Merged:
    """Write the record of both sides of a merge, and commit it.

    Raises:
        InputError: a file that no run writes is in conflict, or a side's record is damaged.
    """
    unmerged = [name for name in git("diff", "--name-only", "--diff-filter=U", "-z").split("\0") if name]
    if others := [name for name in unmerged if name not in RECORD]:
        raise GitError(f"{_some(others)} is in conflict: resolve it, git add it, and run trueline merge again")
    params = load_params()
    log = _merge_logs(params, other)
    stages = _merge_results(params, log, other)
    git("add", "--", *(name for name in RECORD if Path(name).exists()))
    merged = Merged(commits=0, decisions=log.new, stages=stages, conflicts=log.conflicts, next=None)
    if answers("rev-parse", "-q", "--verify", "MERGE_HEAD"):
        git("commit", "-q", "--no-verify", "--no-edit")
        return merged
    what = "rebase" if answers("rev-parse", "-q", "--verify", "REBASE_HEAD") else "cherry-pick"
    return {**merged, "next": f"git {what} --continue"}


def _merge_logs(params: Params, other: str) -> MergedLog:
    ours, theirs = (_content(side, DECISIONS).encode() for side in ("HEAD", other))
    with log_lock() as path:
        log = _merged(params, ours, theirs)
        present = _without_marks(path)
        # Nothing that only the working folder has is lost either.
        merged = _merged(params, log.content, log.content + present) if present else log
        if merged.content:
            _write(path, merged.content)
    return merged._replace(new=log.new, conflicts=log.conflicts)


def _put_in_order() -> list[str]:
    """Put right what git has merged by itself: a line twice, or lines behind the one that overtook them."""
    with log_lock() as path:
        present = _without_marks(path)
        if not present:
            return []
        log = _merged(load_params(), present, present)
        if log.content != path.read_bytes():
            _write(path, log.content)
    return log.conflicts


def _merged(params: Params, ours: bytes, theirs: bytes) -> MergedLog:
    """Merge two logs; the registry is asked only where one champion was changed twice."""
    log = merge_logs(ours, theirs)
    if not log.is_forked:
        return log
    try:
        applied = applied_decision(open_store(params.registry.experiment), params)
    except InputError as error:
        logger.warning("%s; of two changes of one champion the later counts until then", error)
        return log
    return merge_logs(ours, theirs, applied)


def _merge_results(params: Params, log: MergedLog, other: str) -> dict[str, Taken]:
    """Write dvc.lock and opponent.json."""
    lock = LOCK_FILE.as_posix()
    base = answers("merge-base", "HEAD", other) or "HEAD"
    ours, theirs, before = (_content(side, lock) for side in ("HEAD", other, base))

    def name_opponent(outputs: Mapping[str, str]) -> None:
        _name_opponent(params, log, outputs)

    if theirs not in ("", before, ours):
        return merge_locks(ours, theirs, name_opponent).taken
    if _content("HEAD", OPPONENT_FILE.as_posix()) != _content(other, OPPONENT_FILE.as_posix()):
        name_opponent(output_hashes("align"))
    return {}


def _name_opponent(params: Params, log: MergedLog, outputs: Mapping[str, str]) -> None:
    """Write whom the candidate was compared with, or is to be: as a run does, by the record alone."""
    move = last_move(log.decisions, params.registry.policy)
    wanted = SFT_OPPONENT
    if move:
        champion = move["policy"]
        wanted = opponent_entry(champion["version"], champion["md5"])
        if champion["md5"] in [md5 for path, md5 in outputs.items() if Path(path).is_relative_to(MODELS)]:
            compared = champion["record"]["opponent"]
            wanted = opponent_entry(compared["version"], compared["policy"])
    write_json(OPPONENT_FILE, wanted)


def _content(commit: str, name: str) -> str:
    try:
        return git("show", f"{commit}:./{name}")
    except GitError:  # that commit has no such file
        return ""


def _without_marks(path: Path) -> bytes:
    if not path.exists():
        return b""
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(MARKS))


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as draft:
        draft.write_bytes(content)


def _nothing(conflicts: list[str]) -> Merged:
    return Merged(commits=0, decisions=0, stages={}, conflicts=conflicts, next=None)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
