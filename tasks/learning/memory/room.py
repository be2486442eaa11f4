"""The memory that a device has, and what of it models can have."""

from pathlib import Path

import torch

# What torch's libraries take on a GPU, and the share that a caching allocator loses between blocks of other sizes.
CONTEXT, LOST = 10**9, 0.05
CGROUP = Path("/sys/fs/cgroup/memory.max")


def needed(size: int, *, on_gpu: bool) -> int:
    """Bytes that a device must have for tensors of so many bytes."""
    return round(size * (1 + LOST)) + CONTEXT if on_gpu else size


def memory_of(device: torch.device) -> int:
    """The memory of a device in bytes: of a CPU the machine's, or what its container may have of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    total: int = psutil.virtual_memory().total
    limit = CGROUP.read_text(encoding="ascii").strip() if CGROUP.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total
