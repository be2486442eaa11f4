"""What an account tells of places: a name in the project, never a path or an address of somebody's machine."""

import hashlib
import platform
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tasks.data.names import name_in_outputs

Value = TypeVar("Value")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S+")
ELSEWHERE = re.compile(r"(/|\.\./|[A-Za-z]:[\\/])")
TOLD = ("base", "params", "hub")  # parts of an account that hold settings; the others follow from data
HIDDEN = "…"


def without_places(account: Mapping[str, Any]) -> dict[str, Any]:
    """Take what names a machine out of the settings of an account, which one of an earlier release may hold."""
    return {key: in_outputs(value) if key in TOLD else value for key, value in account.items()}


def in_outputs(settings: Value) -> Value:
    """Name files by their place in the project, or by their own name alone; of an address keep what is behind its host.

    Args:
        settings: nested settings, by name or by source.
    """
    told: Any = settings
    if isinstance(told, Mapping):
        told = {in_outputs(key): in_outputs(value) for key, value in told.items()}
    elif isinstance(told, list):
        told = [in_outputs(value) for value in told]
    elif isinstance(told, str) and ADDRESS.fullmatch(told):
        told = f"{urlsplit(told).scheme}://{HIDDEN}{urlsplit(told).path}"
    elif isinstance(told, str) and ELSEWHERE.match(told):
        told = name_in_outputs(told)
    result: Value = told
    return result


def this_machine() -> str:
    """Name this machine as no other, without telling its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]
