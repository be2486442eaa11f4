"""Reading and appending the file decisions.jsonl.

A row that is not a decision stops every command with the row's number, and stays in the file. A line is written whole
or not at all. Only fields that commands act on are checked; others, perhaps of a later release, stay as they are.
"""

import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.common.errors import InputError
from tasks.registry.promotion.earlier_releases import EARLIER_RECORD, with_todays_names

DECISIONS = "decisions.jsonl"
LONGEST_ROW = 16 * 2**20  # bytes; a model record has at most 100,000 characters
LINE_START = b'{"id": "'  # of every line ever written; a kill cuts off its end
CURE = "restore the file from git, or delete that row"
logger = logging.getLogger(__name__)


class _RowError(ValueError):
    """Why a row is not a decision."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
_Number = Annotated[int, Field(ge=1, le=1_000_000)]
_Text = Annotated[str, Field(min_length=1)]


class _Content(_Part):
    md5: _Hash


class _Model(_Content):
    path: _Text


class _Policy(_Model):
    name: _Text  # of the registered model


class _Keys(_Part):
    align: _Text
    reward: _Text


class _Opponent(_Part):
    version: _Number | None
    policy: _Hash | None


class _ModelRecord(_Part):
    policy: _Policy
    method: _Text
    reward: _Content
    data: _Content
    gate: dict[str, Any]
    opponent: _Opponent
    keys: _Keys


class _VersionId(_Content):
    version: _Number
    reward_version: _Number


class _PolicyVersion(_VersionId):
    record: _ModelRecord

    @model_validator(mode="after")
    def _has_one_content(self) -> Self:
        if self.record.policy.md5 != self.md5:
            raise ValueError("its model record is that of another content")
        return self


class _Review(_Part):
    by: _Text
    reason: _Text


class _Row(_Part):
    """A decision as it is stored."""

    id: _Text
    time: _Text
    who: str
    action: Literal["promote", "rollback", "hold", "refuse"]
    policy: _PolicyVersion
    previous: _VersionId | None
    reasons: list[str]
    gate: dict[str, Any]
    review: _Review | None


def read_decisions(path: Path) -> list[dict[str, Any]]:
    """Read every decision, oldest first; none where there is no file.

    A last line that begins like a decision and is incomplete decided nothing, and is left out.

    Raises:
        InputError: the file cannot be read, or a row is not a decision.
    """
    rows: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if _is_cut_off(line):
            logger.warning("%s row %d is incomplete: it decided nothing", DECISIONS, number)
            break
        row = _parse(number, line)
        if row["id"] in places:
            both = f"rows {places[row['id']]} and {number} have the same id {row['id']}"
            raise InputError(f"{DECISIONS} {both}: run trueline merge, or restore the file from git")
        places[row["id"]] = number
        rows.append(row)
    return rows


def read_merged(*contents: bytes) -> list[dict[str, tuple[dict[str, Any], bytes]]]:
    """Read several versions of the file: each decision's row and line by its id, in the order of that version.

    What git leaves of a merge is read too: a decision that stands there twice counts once.

    Raises:
        InputError: a row is not a decision.
    """
    versions = []
    for content in contents:
        found: dict[str, tuple[dict[str, Any], bytes]] = {}
        for number, line in enumerate(_without_cut_off(content).splitlines(keepends=True), start=1):
            row = _parse(number, line)
            found.setdefault(row["id"], (row, line if line.endswith(b"\n") else line + b"\n"))
        versions.append(found)
    return versions


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line; when this returns it is on the disk, and if it raises nothing of it is.

    Raises:
        InputError: the disk is full or may not be written to.
    """
    _Row.model_validate(row)  # a row that cannot be read again would stop every command
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    try:
        with path.open("ab", buffering=0) as file:
            complete = _without_cut_off(path.read_bytes())
            os.truncate(path, len(complete))
            try:
                _write(file.fileno(), line if not complete or complete.endswith(b"\n") else b"\n" + line)
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # the next append removes what stays, as after a kill
                    os.truncate(path, len(complete))
                raise
    except OSError as error:
        raise InputError(
            f"{DECISIONS} could not be written ({error.strerror}), so nothing was decided: free space on its disk or "
            "grant write permission, and run the command again"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            raise InputError(f"{DECISIONS} is not a file: restore it from git")
        with path.open("rb") as file:
            while line := file.readline(LONGEST_ROW + 1):
                yield line
                if len(line) > LONGEST_ROW:
                    return  # the row is refused
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{DECISIONS} is a link to nothing: fix the link, or restore the file from git") from None
    except OSError as error:
        cure = "grant permission, or repair the disk"
        raise InputError(f"{DECISIONS} cannot be read ({error.strerror}): {cure}") from error


def _is_cut_off(line: bytes) -> bool:
    """Return whether a line's writer was killed, before any alias moved; an edited line is not cut off."""
    if line.endswith(b"\n") or len(line) > LONGEST_ROW:
        return False
    # Some file systems keep only the length of what a kill cut off.
    is_start = line.startswith(LINE_START[: len(line)]) or not line.strip(b"\0")
    return is_start and not _is_json(line)


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        if len(line) > LONGEST_ROW:
            raise _RowError(f"longer than {LONGEST_ROW >> 20} MiB")
        row = _as_json(line)
        if not isinstance(row, dict):
            raise _RowError("not a JSON object")
        row = _with_record(_with_policy(row))
        _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _row_fault(number, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except _RowError as error:
        raise _row_fault(number, str(error)) from None
    return {**row, "policy": {**row["policy"], "record": with_todays_names(row["policy"]["record"])}}


def _with_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the field that holds the model record, where an earlier release wrote the row."""
    if not isinstance(policy := row.get("policy"), Mapping):
        return dict(row)
    return {**row, "policy": {"record" if name == EARLIER_RECORD else name: value for name, value in policy.items()}}


def _row_fault(number: int, fault: str) -> InputError:
    return InputError(f"{DECISIONS} row {number} is damaged: {CURE} ({fault})")


def _as_json(line: bytes) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """Parse a line.

    Raises:
        _RowError: it is not UTF-8, not JSON, has a key twice, or holds text that UTF-8 cannot encode.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise _RowError("not UTF-8") from None
    if text.startswith(("<<<<<<<", "=======", ">>>>>>>", "|||||||")):
        raise _RowError("a conflict marker of git: run trueline merge, which keeps the lines of both sides")
    try:
        row = json.loads(text, object_pairs_hook=_unique_keys)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _RowError("half a surrogate pair") from None
    except _RowError:
        raise
    except ValueError:
        raise _RowError("not JSON") from None
    except RecursionError:
        raise _RowError("nested too deep") from None
    return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RowError("a key twice")
    return found


def _with_policy(row: dict[str, Any]) -> dict[str, Any]:
    """Read a row of a release that logged changes of champion alone, under the key `champion`."""
    if "champion" in row and "policy" not in row:
        row = {**row, "policy": row["champion"], "review": None}
        del row["champion"]
    return row


def _is_json(line: bytes) -> bool:
    try:
        _as_json(line)
    except _RowError:
        return False
    return True


def _without_cut_off(content: bytes) -> bytes:
    """Leave out a last line that a kill cut off."""
    complete, newline, last = content.rpartition(b"\n")
    return complete + newline if last and _is_cut_off(last) else content


def _write(number: int, content: bytes) -> None:
    while content:  # the system may write a part, such as what still fits on the disk
        content = content[os.write(number, content) :]
