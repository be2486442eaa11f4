"""The append-only record of every decision on a version: decisions.jsonl, kept in git.

The record comes first and the registry follows it: a line is on the disk before an alias moves. So the registry can
be rebuilt from the record, and a crash between the two is mended by carrying the last line out again.
"""

import getpass
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from filelock import FileLock

from tasks.common.files import STATE
from tasks.registry.mlflow_runs.provenance import code_tags
from tasks.registry.mlflow_runs.store import main_checkout
from tasks.registry.promotion.decision_file import DECISIONS, append_row, read_rows

# hold: good enough, but a person must approve. refuse: by the gate, or by a person.
Action = Literal["promote", "rollback", "hold", "refuse"]
MOVES: tuple[Action, ...] = ("promote", "rollback")  # they change the champion


class Place(TypedDict):
    """A policy version, its content hash, and the reward model version it was made with."""

    version: int
    reward_version: int
    md5: str


class Holder(Place):
    """A policy version with everything known of it (see candidate.py)."""

    account: dict[str, Any]


class Review(TypedDict):
    """What a person said of a version that awaited approval."""

    by: str
    reason: str


class Decision(TypedDict):
    """One decision on a version of the policy."""

    id: str
    time: str  # UTC
    who: str  # account of the system
    action: Action
    policy: Holder  # what was decided on
    previous: Place | None  # the champion until then: after `hold` and `refuse` it still is
    reasons: list[str]
    gate: dict[str, Any]  # the figures it rests on
    review: Review | None  # where a person approved or rejected
    git_commit: str | None


def place(holder: Place) -> Place:
    """Leave out the account."""
    return Place(version=holder["version"], reward_version=holder["reward_version"], md5=holder["md5"])


def decide(
    action: Action,
    policy: Holder,
    previous: Holder | None,
    reasons: list[str],
    gate: dict[str, Any],
    *,
    review: Review | None = None,
) -> Decision:
    """Append a decision to the record; when this returns it is on the disk.

    Raises:
        InputError: the record is damaged, or cannot be written.
    """
    past_decisions()  # a line is never added to a damaged record
    decision = Decision(
        id=uuid.uuid4().hex[:12],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        who=who(),
        action=action,
        policy=policy,
        previous=previous and place(previous),
        reasons=reasons,
        gate=gate,
        review=review,
        git_commit=code_tags().get("git_commit"),
    )
    if _asked_for(decision):
        _unfinished().write_text(decision["id"])  # before the line: from then on it may be asked for again
    append_row(_path(), decision)
    return decision


def finish() -> None:
    """Note that whoever asked for the last change of champion, or gave their word, is about to be told of it."""
    _unfinished().unlink(missing_ok=True)


def unfinished() -> Decision | None:
    """Give the last change of champion or word of a person, where its command was killed before its end."""
    last = [decision for decision in past_decisions() if _asked_for(decision)][-1:]
    was_cut_off = last and _unfinished().exists() and _unfinished().read_bytes() == last[0]["id"].encode()
    return last[0] if was_cut_off else None


def past_decisions() -> list[Decision]:
    """Read every decision ever made, oldest first.

    Raises:
        InputError: the record cannot be read, or a row is no decision.
    """
    return cast("list[Decision]", read_rows(_path()))


def decisions_on(md5: str) -> list[Decision]:
    """Read the decisions on the version with this content, oldest first.

    Raises:
        InputError: the record cannot be read, or a row is no decision.
    """
    return [decision for decision in past_decisions() if decision["policy"]["md5"] == md5]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of this checkout at a time look at the registry and change it.

    Raises:
        InputError: the record cannot be read, or a row is no decision.
    """
    folder = main_checkout() / STATE
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "registry.lock"):
        past_decisions()  # who is champion is what the record says: damaged, it stops everybody here
        yield


def _asked_for(decision: Decision) -> bool:
    """Tell what would be done a second time if it were asked for again; the gate's word is recorded once anyhow."""
    return decision["action"] in MOVES or decision["review"] is not None


def _path() -> Path:
    return main_checkout() / DECISIONS


def _unfinished() -> Path:
    return main_checkout() / STATE / "deciding"


def who() -> str:
    """Name the account of the system that runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"user {os.getuid()}"
