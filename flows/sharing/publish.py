"""Sharing results: data and run cache to DVC's remote, then the record to git; each step points only to what is there.

A kill leaves nothing that points to what is missing, and the same command goes on from there.
"""

import logging
import subprocess
import sys
from typing import TypedDict

from flows.sharing.git import RECORD, GitError, Upstream, answers, changed, check_identity, commit_record, git
from flows.sharing.merging import Merged, merge, resolve, take_in, under_way
from tasks.common.children import child
from tasks.common.errors import InputError
from tasks.common.escapes import visible
from tasks.common.safe_text import without_secrets
from tasks.registry.dvc_outputs.remote import RemoteError, check_default_remote
from tasks.registry.dvc_outputs.sending import send, unsent
from tasks.registry.promotion.decisions import checkout_lock, past_decisions
from tasks.registry.promotion.merged_log import last_move
from tasks.settings.params import Params, load_params

TRIES = 5  # at a branch that others push to at the same time
logger = logging.getLogger(__name__)


class Published(TypedDict):
    """What was sent."""

    committed: list[str]  # files
    commit: str
    branch: str
    merged: int  # commits of other machines that were taken in
    conflicts: list[str]  # between their record and ours, a sentence each
    left: list[str]  # changed files that are not part of the record


def publish() -> Published:
    """Push data and run cache, commit the record, and push it.

    Raises:
        InputError: a remote lacks or does not answer, git refuses, or the upstream has changes for a person to take.
    """
    check_default_remote()
    upstream = Upstream()
    check_identity()
    params, conflicts = load_params(), list[str]()
    other = under_way()
    if other:  # an earlier call was killed
        conflicts += resolve(other)["conflicts"]
    _push_data(params)
    with checkout_lock():
        committed = commit_record(_message(params))
    merged = _push(upstream)
    return Published(
        committed=committed,
        commit=git("rev-parse", "HEAD").strip(),
        branch=f"{upstream.remote} {upstream.there.removeprefix('refs/heads/')}",
        merged=sum(each["commits"] for each in merged),
        conflicts=[*conflicts, *(conflict for each in merged for conflict in each["conflicts"])],
        left=[name for name in changed() if name not in RECORD],
    )


def take_in_before_run() -> None:
    """Take in the record of other machines where `registry.publish` has it shared; a failure is a warning."""
    if not load_params().registry.publish:
        return
    try:
        conflicts = merge(only_record=True)["conflicts"]
    except InputError as error:
        conflicts = [f"{error}; the run goes on with this machine's record"]
    for conflict in conflicts:
        logger.warning("%s", conflict)


def publish_after_run(params: Params) -> list[str]:
    """Publish where `registry.publish` wants it and something is new; gives what failed, a sentence each."""
    if not params.registry.publish or is_published():
        return []
    try:
        return publish()["conflicts"]
    except InputError as error:
        return [f"not published: {error}; the next run tries again, as trueline publish does"]


def is_published() -> bool:
    """Tell, without asking a remote, whether the record is committed and pushed."""
    upstream = answers("rev-parse", "-q", "--verify", "@{u}")
    return upstream is not None and not changed(*RECORD) and git("rev-list", "--count", f"{upstream}..HEAD") == "0\n"


def _push_data(params: Params) -> None:
    """Push all that dvc.lock and the champion's entry in the record point to, and then the run cache.

    Raises:
        InputError: DVC's remote does not take it, or the cache lacks some of it.
    """
    _dvc_push()
    move = last_move(past_decisions(), params.registry.policy)
    if move:
        send([move["policy"]["md5"], move["policy"]["record"]["reward"]["md5"]])
    if missing := unsent():
        raise RemoteError(
            f"{missing[0]} of dvc.lock is neither in DVC's cache nor in its remote: run trueline run, which makes it "
            "again, and then trueline publish"
        )
    _dvc_push("--run-cache")


def _dvc_push(*options: str) -> None:
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "push", *options]
    with child(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(visible(without_secrets(line)))
    if process.returncode != 0:
        raise RemoteError("dvc push failed, as the lines above say; nothing was committed")


def _push(upstream: Upstream) -> list[Merged]:
    """Push to git, taking in what other machines push meanwhile."""
    merged = []
    for _ in range(TRIES):
        merged.append(take_in(upstream, only_record=True))
        try:
            upstream.push()
        except GitError:
            if git("rev-list", "--count", f"HEAD..{upstream.fetch()}") == "0\n":
                raise  # nobody was faster
        else:
            return merged
    raise GitError(f"others push to {upstream.remote} all the time: run trueline publish again")


def _message(params: Params) -> str:
    """Name the last decision in the commit's subject."""
    own = [each for each in past_decisions() if each["policy"]["record"]["policy"]["name"] == params.registry.policy]
    if not own:
        return "Record the results of the pipeline"
    last = own[-1]
    return f"Record version {last['policy']['version']}: {last['action']}\n\nDecision {last['id']}."
