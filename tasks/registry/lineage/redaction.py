"""Taking paths and addresses of a machine out of what is stored or published: names in the project take their place."""

import hashlib
import platform
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tasks.data.names import name_in_outputs

Value = TypeVar("Value")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S+")
OUTSIDE_PATH = re.compile(r"(/|\.\./|[A-Za-z]:[\\/])")
SETTINGS_PARTS = ("base", "params", "hub")  # parts of a model record that hold settings; the others follow from data
REDACTED = "…"


def redact_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Redact the settings in a model record; one of an earlier release may hold paths and addresses."""
    return {key: redact(value) if key in SETTINGS_PARTS else value for key, value in record.items()}


def redact(settings: Value) -> Value:
    """Shorten paths to their place in the project or to the file name, and replace the host of an address.

    Args:
        settings: nested settings, by name or by source.
    """
    value: Any = settings
    if isinstance(value, Mapping):
        value = {redact(key): redact(each) for key, each in value.items()}
    elif isinstance(value, list):
        value = [redact(each) for each in value]
    elif isinstance(value, str) and ADDRESS.fullmatch(value):
        value = f"{urlsplit(value).scheme}://{REDACTED}{urlsplit(value).path}"
    elif isinstance(value, str) and OUTSIDE_PATH.match(value):
        value = name_in_outputs(value)
    result: Value = value
    return result


def machine_id() -> str:
    """Return a name for this machine that does not reveal its host name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]
