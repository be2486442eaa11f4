"""Whom the candidate must beat: the champion, or SFT where there is none yet. A file, so that DVC sees it change."""

from pathlib import Path
from typing import Literal, NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import read_json

OPPONENT_FILE = Path("opponent.json")
CURE = "restore it from git (git checkout opponent.json), or have trueline run write it anew"


class Opponent(NamedTuple):
    """A model by name, version and bytes."""

    name: Literal["sft", "champion"]
    version: int | None  # in the model registry
    policy: str | None  # DVC's hash of its folder

    def __str__(self) -> str:
        return "SFT" if self.name == "sft" else f"champion version {self.version}"


def read_opponent(path: Path = OPPONENT_FILE) -> Opponent:
    """Read whom the candidate is compared with.

    Raises:
        InputError: the file is missing, damaged, or names a champion without its version or policy.
    """
    try:
        content = read_json(path)
    except InputError:  # its cure is a stage to run, and no stage writes this file
        raise InputError(f"{path} is missing or damaged: {CURE}") from None
    version, policy = content.get("version"), content.get("policy")
    match content.get("name"):
        case "sft" if version is None and policy is None:
            return Opponent("sft", None, None)
        case "champion" if type(version) is int and isinstance(policy, str):
            return Opponent("champion", version, policy)
    raise InputError(f"{path} names no opponent: {CURE}")
