"""The append-only record of every decision on a version: decisions.jsonl, kept in git.

The record comes first and the registry follows it: a line is on the disk before an alias moves. So the registry can
be rebuilt from the record, and a crash between the two is mended by carrying the last line out again.
"""

import getpass
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from filelock import FileLock

from tasks.data.files import STATE
from tasks.errors import InputError
from tasks.registry.provenance import code_tags
from tasks.registry.store import main_checkout

DECISIONS = "decisions.jsonl"
# hold: good enough, but a person must approve. refuse: by the gate, or by a person.
Action = Literal["promote", "rollback", "hold", "refuse"]
MOVES: tuple[Action, ...] = ("promote", "rollback")  # they change the champion
logger = logging.getLogger(__name__)


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
        InputError: the record is damaged.
    """
    past_decisions()  # a line is never added to a damaged record
    _end_last_line()
    decision = Decision(
        id=uuid.uuid4().hex[:12],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        who=_who(),
        action=action,
        policy=policy,
        previous=previous and place(previous),
        reasons=reasons,
        gate=gate,
        review=review,
        git_commit=code_tags().get("git_commit"),
    )
    with _path().open("a", encoding="utf-8") as file:
        file.write(json.dumps(decision, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return decision


def past_decisions() -> list[Decision]:
    """Read every decision ever made, oldest first.

    Raises:
        InputError: a row of the record is damaged.
    """
    if not _path().exists():
        return []
    decisions: list[Decision] = []
    with _path().open("rb") as file:
        for row, line in enumerate(file, start=1):
            try:
                decisions.append(_as_decision(json.loads(line)))
            except ValueError:
                if not line.endswith(b"\n"):  # the last one: whoever wrote it was killed before anything moved
                    logger.warning("%s row %d was not written to its end: it decided nothing", DECISIONS, row)
                    break
                cure = "restore the file from git, or delete that row"
                raise InputError(f"{DECISIONS} row {row} is damaged: {cure}") from None
    return decisions


def decisions_on(md5: str) -> list[Decision]:
    """Read the decisions on the version with this content, oldest first.

    Raises:
        InputError: a row of the record is damaged.
    """
    return [decision for decision in past_decisions() if decision["policy"]["md5"] == md5]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of this checkout at a time look at the registry and change it."""
    folder = main_checkout() / STATE
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "registry.lock"):
        yield


def _as_decision(row: dict[str, Any]) -> Decision:
    if "champion" in row:  # a record begun when only changes of champion were written
        row = {**row, "policy": row["champion"], "review": None}
        del row["champion"]
    return cast("Decision", row)


def _end_last_line() -> None:
    """Take off what a kill left of a line, or end a whole one that an editor left without its end."""
    path = _path()
    content = path.read_bytes() if path.exists() else b""
    whole, newline, last = content.rpartition(b"\n")
    if last:
        with path.open("r+b") as file:
            if _is_json(last):
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(len(whole + newline))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _path() -> Path:
    return main_checkout() / DECISIONS


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"user {os.getuid()}"
