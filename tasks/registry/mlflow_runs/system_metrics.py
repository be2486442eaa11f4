"""What a run takes of its machine besides time, read where the system tells it and left out where it does not.

Energy is counted by the hardware: processors by Linux's powercap interface (Intel and AMD; most systems let only root
read it), NVIDIA GPUs by NVML, where the package nvidia-ml-py is installed. What else runs on the same processor or GPU
is counted too.
"""

import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

POWERCAP, PROCESSORS = Path("/sys/class/powercap"), Path("/proc/cpuinfo")
COUNTED = ("package", "dram")  # a package counts its cores and its own GPU, but not the memory beside it
MOST_WATTS = 1000.0  # that one counter may see


class Monitor(SystemMetricsMonitor):
    """MLflow's monitor of the system; but what it sees goes where all metrics go, and it asks no server anything."""

    def __init__(self, uri: str, run_id: str, log: Callable[[int, Mapping[str, float]], None]) -> None:
        """Begin.

        Args:
            uri: of the server.
            run_id: whose metrics they are.
            log: takes a step and its metrics.
        """
        super().__init__(run_id, tracking_uri=uri)  # type: ignore[no-untyped-call]
        self.mlflow_logger = _Logger(log)  # type: ignore[assignment]

    def monitor(self) -> None:
        """Look at the system until told to end."""
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]


class _Logger:
    """Stands for MLflow's own, which sends by itself."""

    data = ()
    total_training_time = total_log_batch_time = 0.0

    def __init__(self, log: Callable[[int, Mapping[str, float]], None]) -> None:
        self._log = log

    def record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._log(step, metrics)

    def flush(self) -> None:
        """They are sent with all others."""


class Counter:
    """Joules since it was made, by a counter of the hardware's; not a number from the first time it cannot be read."""

    def __init__(self, read: Callable[[], float], size: float = math.inf) -> None:
        """Begin.

        Args:
            read: gives the hardware's count in joules, nan where it cannot.
            size: the joules at which the hardware's count starts over.
        """
        self.joules = 0.0
        self._read, self._size = read, size
        self._count, self._time = read(), time.monotonic()

    def look(self) -> None:
        """Add what the hardware has counted since the last look, unless it may have started over more than once."""
        count, now = self._read(), time.monotonic()
        is_certain = (now - self._time) * MOST_WATTS < self._size
        self.joules += (count - self._count) % self._size if is_certain else math.nan
        self._count, self._time = count, now


class Meter(BaseMetricsMonitor):
    """A monitor for MLflow's system metrics: energy since it was made and peak memory, both of this machine.

    Figures, each where it can be read: processor_energy_joules, gpu_energy_joules, peak_memory_megabytes (of this
    process), gpu_peak_memory_megabytes (of this process on its GPU).
    """

    def __init__(self, device: str) -> None:
        """Begin to count; `device` is what the run computes on."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_gpu = device == "cuda"
        self._counters = {
            "processor_energy_joules": list(processor_counters()),
            "gpu_energy_joules": list(_gpu_counters()) if self._on_gpu else [],
        }

    def collect_metrics(self) -> None:
        """Look at all counters: often enough that none starts over unseen."""
        for counters in self._counters.values():
            for counter in counters:
                counter.look()

    def aggregate_metrics(self) -> dict[str, float]:
        """Give the figures until the last look."""
        known = {name: sum(each.joules for each in counters) for name, counters in self._counters.items() if counters}
        figures = {name: joules for name, joules in known.items() if math.isfinite(joules)}
        figures["peak_memory_megabytes"] = _peak_memory() / 1e6
        if self._on_gpu:
            figures["gpu_peak_memory_megabytes"] = sys.modules["torch"].cuda.max_memory_allocated() / 1e6
        return figures


def processor_counters(folder: Path = POWERCAP) -> Iterator[Counter]:
    """Find the energy counters of processors and their memory; one that may not be read counts nan."""
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's too go by this name
        if (zone / "name").read_text().startswith(COUNTED):
            size = float((zone / "max_energy_range_uj").read_text()) / 1e6
            yield Counter(partial(_joules, zone / "energy_uj"), size)


def hardware(device: str) -> str:
    """Name the processor, or the GPU where one computes."""
    if device == "cuda":
        name = str(sys.modules["torch"].cuda.get_device_name())
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return f"{name}, {processes} processes" if processes > 1 else name
    found = re.search(r"^model name\s*: (.+)$", PROCESSORS.read_text(), re.MULTILINE) if PROCESSORS.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical cores"


def _joules(path: Path) -> float:
    try:
        return float(path.read_text()) / 1e6
    except OSError:
        return math.nan


def _gpu_counters() -> Iterator[Counter]:
    """Find the energy counters of the GPUs that the processes of this machine compute on."""
    try:
        import pynvml
    except ImportError:
        return

    def joules(handle: Any) -> float:  # noqa: ANN401 (NVML has no types)
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError:
            return math.nan

    cuda = sys.modules["torch"].cuda
    with suppress(pynvml.NVMLError):  # no driver that it knows, or a part of a GPU
        pynvml.nvmlInit()
        for place in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{cuda.get_device_properties(place).uuid}")
            yield Counter(partial(joules, handle))


def _peak_memory() -> int:
    """Bytes that this process has held at most; Linux tells kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
