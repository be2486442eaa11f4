"""The CPUs that this process may use, and whether it is about to ask more of them than they give."""

import os
from pathlib import Path

CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
CGROUP_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by the quota of its container where that is fewer."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return known if quota is None else max(1, min(known, round(quota)))


def too_many_threads(threads: int, processes: int = 1) -> str | None:
    """Say why threads will wait for one another; None where nothing is known to make them.

    With one thread there is nothing to wait for. What costs time is not looked at.

    Args:
        threads: of each process.
        processes: on this machine.
    """
    cpus, wanted = usable_cpus(), threads * processes
    if threads == 1:
        return None
    if wanted > cpus:
        return f"{wanted} threads on {cpus} CPUs wait for one another"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cpus:
        return f"{wanted} threads on {cpus} CPUs with a load of {load:.1f} wait for one another"
    return None


def _quota() -> float | None:
    """The CPUs that the container's quota allows; None where there is none."""
    try:
        if CGROUP_V2.exists():
            quota, period = CGROUP_V2.read_text(encoding="ascii").split()
        else:
            quota, period = (file.read_text(encoding="ascii").strip() for file in CGROUP_V1)
    except OSError:  # no container, or one of another system
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
