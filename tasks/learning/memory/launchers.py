"""How the processes that runtime.launcher starts share the models."""

import re
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.yaml_files import read_yaml
from tasks.learning.memory.stages import Sharing

CONFIG_FILE = re.compile(r"--config_file[ =](\S+)")


def sharing_of(launcher: str, processes: int) -> Sharing:
    """Give what the launcher's accelerate file says, for so many processes; without one each has a copy of all.

    Raises:
        InputError: the file is not there, or holds no settings.
    """
    named = CONFIG_FILE.search(launcher)
    if named is None:
        return Sharing(processes)
    file = Path(named[1])
    try:
        settings: Any = read_yaml(file)
    except FileNotFoundError:
        raise InputError(f"runtime.launcher names {file}, which does not exist: correct it") from None
    if not isinstance(settings, dict):
        raise InputError(f"{file} holds no settings: take a file of infra/accelerate")
    offloads = bool((settings.get("fsdp_config") or {}).get("fsdp_offload_params"))
    is_fsdp = settings.get("distributed_type") == "FSDP"
    return Sharing(processes, is_fsdp and (processes > 1 or offloads), is_fsdp and offloads)
