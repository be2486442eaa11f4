"""What a watch has seen and started, in `.trueline/watch.json`: a restart misses no change, and repeats none."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tasks.common.errors import InputError
from tasks.common.files import STATE, write_json

WATCH_STATE = STATE / "watch.json"


@dataclass
class Seen:
    """A source as it was last seen."""

    path: str
    signature: str  # of its files; empty: not to be trusted
    content: str


@dataclass
class WatchState:
    """The memory of a watch."""

    sources: dict[str, Seen] = field(default_factory=dict)  # by setting; what the last run was for
    remotes: dict[str, str] = field(default_factory=dict)  # signatures by pointer
    pending: bool = False  # a run was to be started, and nobody knows what came of it
    runs: int = 0  # that were started
    last: dict[str, str] | None = None  # time and outcome of the last one

    def save(self, path: Path = WATCH_STATE) -> None:
        """Write it, whole or not at all."""
        write_json(path, asdict(self))


def read_state(path: Path = WATCH_STATE) -> WatchState | None:
    """Read what a watch has seen; None where there was none yet.

    Raises:
        InputError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sources = {setting: Seen(**seen) for setting, seen in content.pop("sources").items()}
        return WatchState(sources, **content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path} is damaged: delete it; what has changed since the last run starts one then") from None
