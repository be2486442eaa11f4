"""The file decisions.jsonl: a row that is no decision is named, never acted on and never lost; a line is added whole.

What is checked is what commands act on. What a row holds besides, of a later release perhaps, is kept and left alone.
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
from tasks.registry.promotion.earlier_releases import with_todays_names

DECISIONS = "decisions.jsonl"
LONGEST_ROW = 16 * 2**20  # bytes; the account of a version has at most 100,000 characters
BEGINNING = b'{"id": "'  # of every line that was ever written; its end is what a kill cuts off
CURE = "restore the file from git, or delete that row"
logger = logging.getLogger(__name__)


class _RowError(ValueError):
    """What is wrong with a row."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
_Number = Annotated[int, Field(ge=1, le=1_000_000)]
_Text = Annotated[str, Field(min_length=1)]


class _Content(_Part):
    md5: _Hash


class _Model(_Content):
    path: _Text


class _Keys(_Part):
    align: _Text
    reward: _Text


class _Opponent(_Part):
    version: _Number | None
    policy: _Hash | None


class _Account(_Part):
    policy: _Model
    method: _Text
    reward: _Content
    data: _Content
    gate: dict[str, Any]
    opponent: _Opponent
    keys: _Keys


class _Place(_Content):
    version: _Number
    reward_version: _Number


class _Holder(_Place):
    account: _Account

    @model_validator(mode="after")
    def _is_of_one_content(self) -> Self:
        if self.account.policy.md5 != self.md5:
            raise ValueError("its account is that of another content")
        return self


class _Review(_Part):
    by: _Text
    reason: _Text


class _Row(_Part):
    id: _Text
    time: _Text
    who: str
    action: Literal["promote", "rollback", "hold", "refuse"]
    policy: _Holder
    previous: _Place | None
    reasons: list[str]
    gate: dict[str, Any]
    review: _Review | None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read every decision, oldest first; none where there is no file.

    A last line that begins as decisions do and was not written to its end decided nothing, and is left out.

    Raises:
        InputError: the file cannot be read, or a row is no decision.
    """
    rows: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if _was_cut_off(line):
            logger.warning("%s row %d was not written to its end: it decided nothing", DECISIONS, number)
            break
        row = _parse(number, line)
        if row["id"] in places:
            both = f"rows {places[row['id']]} and {number} have the same id {row['id']}"
            raise InputError(f"{DECISIONS} {both}: delete one of them, or restore the file from git")
        places[row["id"]] = number
        rows.append(row)
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line; when this returns it is on the disk, and where it raises nothing of it is.

    Raises:
        InputError: the disk is full or may not be written to.
    """
    _Row.model_validate(row)  # what could not be read again would stop every command
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    try:
        with path.open("ab", buffering=0) as file:
            whole = _without_cut_off(path.read_bytes())
            os.truncate(path, len(whole))
            try:
                _write(file.fileno(), line if not whole or whole.endswith(b"\n") else b"\n" + line)
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # what cannot be taken off now goes as after a kill
                    os.truncate(path, len(whole))
                raise
    except OSError as error:
        raise InputError(
            f"{DECISIONS} could not be written ({error.strerror}), so nothing was decided: free space on its disk or "
            "grant write permission, and ask again"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for whoever writes into it
            raise InputError(f"{DECISIONS} is no file: restore it from git")
        with path.open("rb") as file:
            while line := file.readline(LONGEST_ROW + 1):
                yield line
                if len(line) > LONGEST_ROW:
                    return  # its row is refused
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{DECISIONS} is a link to nothing: mend it, or restore the file from git") from None
    except OSError as error:
        raise InputError(f"{DECISIONS} cannot be read ({error.strerror}): grant permission or mend the disk") from error


def _was_cut_off(line: bytes) -> bool:
    """Tell a line whose writer was killed, before anything moved, from one that somebody has changed."""
    if line.endswith(b"\n") or len(line) > LONGEST_ROW:
        return False
    begins = line.startswith(BEGINNING[: len(line)]) or not line.strip(b"\0")  # some file systems keep only its length
    return begins and not _is_json(line)


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        if len(line) > LONGEST_ROW:
            raise _RowError(f"longer than {LONGEST_ROW >> 20} MiB")
        row = _as_json(line)
        if not isinstance(row, dict):
            raise _RowError("no JSON object")
        row = _of_today(row)
        _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _no_decision(number, f"{place}: {first['msg']}" if place else first["msg"]) from None
    except _RowError as error:
        raise _no_decision(number, str(error)) from None
    policy = row["policy"]
    return {**row, "policy": {**policy, "account": with_todays_names(policy["account"])}}


def _no_decision(number: int, fault: str) -> InputError:
    return InputError(f"{DECISIONS} row {number} is damaged: {CURE} ({fault})")


def _as_json(line: bytes) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """Parse a line.

    Raises:
        _RowError: it is not UTF-8 or not JSON, says a thing twice, or holds what UTF-8 cannot.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise _RowError("not UTF-8") from None
    if text.startswith(("<<<<<<<", "=======", ">>>>>>>", "|||||||")):
        raise _RowError("a mark of git's: the conflict must be resolved, with the lines of both sides")
    try:
        row = json.loads(text, object_pairs_hook=_once)
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RowError("a key that stands twice")
    return found


def _of_today(row: dict[str, Any]) -> dict[str, Any]:
    """Read a row of when only changes of champion were recorded."""
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
    """Leave out what a kill left of a last line."""
    whole, newline, last = content.rpartition(b"\n")
    return whole + newline if last and _was_cut_off(last) else content


def _write(number: int, content: bytes) -> None:
    while content:  # the system may take a part, such as what still fits on the disk
        content = content[os.write(number, content) :]
