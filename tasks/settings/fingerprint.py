"""What a stage's result follows from: settings, and the contents of files; and how two such differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.files import hash_files
from tasks.settings.params import PARAMS_FILE, Params

# They say how often, where and in how many processes, not what is computed: a checkpoint is good for others, too.
CHANGE_NO_RESULT = frozenset({"launcher", "checkpoint_every", "max_checkpoints", "vllm"})
LISTED = 3  # differences that are listed one by one


class Fingerprint(NamedTuple):
    """What a result follows from."""

    settings: dict[str, Any]  # by dotted name, as in params.yaml
    contents: dict[str, str]  # hashes of files and folders, by path

    def differences(self, earlier: "Fingerprint") -> str:
        """Say what is no longer as it was, in the user's words; empty where nothing is."""
        differences = [
            f"{name} was {earlier.settings.get(name, 'not set')} and is {self.settings.get(name, 'not set')}"
            for name in _differing(earlier.settings, self.settings)
        ]
        differences += [f"{path} has changed" for path in _differing(earlier.contents, self.contents)]
        others = f" (and {len(differences) - LISTED} more)" if len(differences) > LISTED else ""
        return "; ".join(differences[:LISTED]) + others


def content_fingerprint(stage: str, params: Params, inputs: Sequence[Path]) -> Fingerprint:
    """Find out what a stage follows from where no DVC repository says it: its settings and the files it reads."""
    settings = params.model_dump(include={"seed", "runtime", "lora", stage})
    settings["runtime"] = {name: value for name, value in settings["runtime"].items() if name not in CHANGE_NO_RESULT}
    return Fingerprint(flatten(settings), {path.as_posix(): hash_files(path) for path in inputs})


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give the leaves of a nested mapping under dotted names; the name of params.yaml itself is left out."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        path = prefix if name == PARAMS_FILE.name else f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}." if path else "")
        else:
            flat[path] = value
    return flat


def _differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [name for name in {**earlier, **now} if earlier.get(name, missing) != now.get(name, missing)]
