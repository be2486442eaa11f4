"""The list of a backup's files with their hashes, and what they are."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.common.errors import InputError
from tasks.common.files import write_json
from tasks.registry.backup.databases import Kind

MANIFEST = "manifest.json"
FORMAT: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class SavedFile(_Part):
    """A file of the backup."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Part):
    """What a backup holds."""

    format: Literal[1]
    made: str  # UTC
    versions: dict[str, str]  # of the programs that wrote it
    checkout: str  # address of its folder
    database: Kind
    artifacts: str | None  # address of the folder of MLflow's artifacts; None: they lie on a server
    decisions: int
    aliases: dict[str, int]  # versions of the policy
    files: dict[str, SavedFile]  # by path in the backup

    @field_validator("files")
    @classmethod
    def _lie_in_the_backup(cls, files: dict[str, SavedFile]) -> dict[str, SavedFile]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name} is outside the backup")
        return files


def hashes(folder: Path) -> dict[str, SavedFile]:
    """Hash all files in a folder, by their path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _hashed(path) for path in paths}


def write_manifest(folder: Path, known: Mapping[str, Any]) -> Manifest:
    """Hash what a backup holds, and write its list."""
    manifest = Manifest(format=FORMAT, files=hashes(folder), **known)
    write_json(folder / MANIFEST, manifest.model_dump())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the list of a backup, and check every file against it.

    Raises:
        InputError: the folder is no backup, of another format, or damaged.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is no backup, it has no {MANIFEST}: name a folder of trueline backup") from None
    except ValueError:
        raise InputError(f"{folder / MANIFEST} is damaged: use another backup") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"{folder} has format {found}, this release reads {FORMAT}: use the release that wrote it")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise InputError(f"{folder / MANIFEST} is damaged ({fault}): use another backup") from None
    if damaged := _damaged(folder, manifest.files.items()):
        raise InputError(f"{folder / damaged} is missing or damaged, so nothing was restored: use another backup")
    return manifest


def _damaged(folder: Path, files: Iterable[tuple[str, SavedFile]]) -> str | None:
    return next((name for name, saved in files if not _is_intact(folder / name, saved)), None)


def _is_intact(path: Path, saved: SavedFile) -> bool:
    try:
        return _hashed(path) == saved
    except OSError:
        return False


def _hashed(path: Path) -> SavedFile:
    with path.open("rb") as file:
        return SavedFile(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)
