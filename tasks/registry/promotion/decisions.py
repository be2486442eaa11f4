"""Every decision on a version, in the append-only decision log (decisions.jsonl, tracked by git).

The log comes first and the registry follows: a line is on the disk before an alias moves. So the registry can be
rebuilt from the log, and after a crash between the two the last line is applied again.

A decision belongs to the registered model that its model record names: another `registry.policy` starts anew.
"""

import getpass
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from filelock import FileLock

from tasks.common.files import STATE
from tasks.registry.mlflow_runs.provenance import code_tags
from tasks.registry.mlflow_runs.store import main_checkout
from tasks.registry.promotion.decision_log import DECISIONS, append_row, read_decisions

# hold: the gate passed and a person must approve. refuse: by the gate, or by a person.
Action = Literal["promote", "rollback", "hold", "refuse"]
EARLIER_UNREPORTED = "deciding"  # what an earlier release called the file unreported_decision
MOVES: tuple[Action, ...] = ("promote", "rollback")  # they change the champion


class VersionId(TypedDict):
    """A policy version, its content hash, and the version of the reward model it was made with."""

    version: int
    reward_version: int
    md5: str


class PolicyVersion(VersionId):
    """A policy version with its model record (see candidate.py)."""

    record: dict[str, Any]


class Review(TypedDict):
    """A person's decision on a version that awaited approval."""

    by: str
    reason: str


class Decision(TypedDict):
    """One decision on a version of the policy."""

    id: str
    time: str  # UTC
    who: str  # name of the system's user
    action: Action
    policy: PolicyVersion  # the version decided on
    previous: VersionId | None  # the champion before the decision; after `hold` and `refuse` it still is
    reasons: list[str]
    gate: dict[str, Any]  # the gate's checks and figures
    review: Review | None  # where a person approved or rejected
    git_commit: str | None


def registered_model(policy: PolicyVersion) -> str:
    """Return the name of the registered model that a version belongs to."""
    return str(policy["record"]["policy"]["name"])


def version_id(policy: VersionId) -> VersionId:
    """Return the version without its model record."""
    return VersionId(version=policy["version"], reward_version=policy["reward_version"], md5=policy["md5"])


def decide(
    action: Action,
    policy: PolicyVersion,
    previous: PolicyVersion | None,
    reasons: list[str],
    gate: dict[str, Any],
    *,
    review: Review | None = None,
) -> Decision:
    """Append a decision to the log; when this returns it is on the disk.

    Raises:
        InputError: the log is damaged, or cannot be written.
    """
    past_decisions()  # a line is never added to a damaged log
    decision = Decision(
        id=uuid.uuid4().hex[:12],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        who=system_user(),
        action=action,
        policy=policy,
        previous=previous and version_id(previous),
        reasons=reasons,
        gate=gate,
        review=review,
        git_commit=code_tags().get("git_commit"),
    )
    if _needs_report(decision):
        _unreported_file().write_text(decision["id"])  # before the line: a kill in between must not hide it
    append_row(_path(), decision)
    return decision


def mark_reported() -> None:
    """Note that the result of the last decision is about to be reported to its caller."""
    _unreported_file().unlink(missing_ok=True)


def unreported_decision(model: str) -> Decision | None:
    """Return the last promotion, rollback or review on a model if its command was killed before it reported it."""
    with suppress(FileNotFoundError):
        _unreported_file().with_name(EARLIER_UNREPORTED).replace(_unreported_file())
    last = [decision for decision in decisions_of(model) if _needs_report(decision)][-1:]
    was_killed = last and _unreported_file().exists() and _unreported_file().read_bytes() == last[0]["id"].encode()
    return last[0] if was_killed else None


def past_decisions() -> list[Decision]:
    """Read every decision in the log, of whatever registered model, oldest first.

    Raises:
        InputError: the log cannot be read, or a row is not a decision.
    """
    return cast("list[Decision]", read_decisions(_path()))


def decisions_of(model: str) -> list[Decision]:
    """Read the decisions on versions of the registered model `model`, oldest first.

    Raises:
        InputError: the log cannot be read, or a row is not a decision.
    """
    return [decision for decision in past_decisions() if registered_model(decision["policy"]) == model]


def decisions_on(policy: PolicyVersion) -> list[Decision]:
    """Read the decisions on the version of a registered model with this content, oldest first.

    Raises:
        InputError: the log cannot be read, or a row is not a decision.
    """
    return [
        decision for decision in decisions_of(registered_model(policy)) if decision["policy"]["md5"] == policy["md5"]
    ]


@contextmanager
def checkout_lock() -> Iterator[None]:
    """Let one process of this checkout at a time read and change the registry.

    Raises:
        InputError: the log cannot be read, or a row is not a decision.
    """
    with log_lock():
        past_decisions()  # the log says who is champion: while it is damaged, no command may act
        yield


@contextmanager
def log_lock() -> Iterator[Path]:
    """Let one process of this checkout at a time write the log, whatever it holds; gives its path."""
    folder = main_checkout() / STATE
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "registry.lock"):
        yield _path()


def system_user() -> str:
    """Return the name of the system's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"user {os.getuid()}"


def _needs_report(decision: Decision) -> bool:
    """Return whether the command would act a second time if it were repeated; the gate's refusals are logged once."""
    return decision["action"] in MOVES or decision["review"] is not None


def _path() -> Path:
    return main_checkout() / DECISIONS


def _unreported_file() -> Path:
    return main_checkout() / STATE / "unreported_decision"
