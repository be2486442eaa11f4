"""System metrics of a run: peak memory and energy, where the system offers them.

The hardware counts energy: of processors by Linux's powercap interface (Intel and AMD; on most systems only root may
read it), of NVIDIA GPUs by NVML, if the package nvidia-ml-py is installed. Other programs on the same processor or GPU
are counted too.
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
MAX_WATTS = 1000.0  # of one counter


class Monitor(SystemMetricsMonitor):
    """MLflow's system monitor, which logs like all other metrics here and sends no request of its own."""

    def __init__(self, uri: str, run_id: str, log: Callable[[int, Mapping[str, float]], None]) -> None:
        """Set up the monitor.

        Args:
            uri: address of the server.
            run_id: the run.
            log: takes a step and its metrics.
        """
        super().__init__(run_id, tracking_uri=uri)  # type: ignore[no-untyped-call]
        self.mlflow_logger = _Logger(log)  # type: ignore[assignment]

    def monitor(self) -> None:
        """Collect metrics until the monitor is shut down."""
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]


class _Logger:
    """Takes the place of MLflow's logger, which sends requests."""

    data = ()
    total_training_time = total_log_batch_time = 0.0

    def __init__(self, log: Callable[[int, Mapping[str, float]], None]) -> None:
        self._log = log

    def record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._log(step, metrics)

    def flush(self) -> None:
        """Do nothing: the metrics are sent with all others."""


class EnergyCounter:
    """Joules since creation, by a counter of the hardware; NaN once a reading fails."""

    def __init__(self, read: Callable[[], float], size: float = math.inf) -> None:
        """Take the first reading.

        Args:
            read: returns the hardware's count in joules, NaN if it cannot be read.
            size: the joules at which the hardware's count wraps around.
        """
        self.joules = 0.0
        self._read, self._size = read, size
        self._count, self._time = read(), time.monotonic()

    def update(self) -> None:
        """Add what the hardware has counted since the last reading; NaN if it may have wrapped around twice."""
        count, now = self._read(), time.monotonic()
        is_certain = (now - self._time) * MAX_WATTS < self._size
        self.joules += (count - self._count) % self._size if is_certain else math.nan
        self._count, self._time = count, now


class EnergyAndMemory(BaseMetricsMonitor):
    """A monitor for MLflow's system metrics: energy since creation, and peak memory.

    Metrics, each if it can be read: processor_energy_joules, gpu_energy_joules, peak_memory_megabytes (of this
    process), gpu_peak_memory_megabytes (of this process on its GPU).
    """

    def __init__(self, device: str) -> None:
        """Start counting; `device` is what the run computes on."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_gpu = device == "cuda"
        self._counters = {
            "processor_energy_joules": list(processor_counters()),
            "gpu_energy_joules": list(_gpu_counters()) if self._on_gpu else [],
        }

    def collect_metrics(self) -> None:
        """Update all counters, often enough to see every wrap-around."""
        for counters in self._counters.values():
            for counter in counters:
                counter.update()

    def aggregate_metrics(self) -> dict[str, float]:
        """Return the metrics as of the last update."""
        known = {name: sum(each.joules for each in counters) for name, counters in self._counters.items() if counters}
        figures = {name: joules for name, joules in known.items() if math.isfinite(joules)}
        figures["peak_memory_megabytes"] = _peak_memory() / 1e6
        if self._on_gpu:
            figures["gpu_peak_memory_megabytes"] = sys.modules["torch"].cuda.max_memory_allocated() / 1e6
        return figures


def processor_counters(folder: Path = POWERCAP) -> Iterator[EnergyCounter]:
    """Find the energy counters of processors and their memory; one that may not be read counts NaN."""
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's have this name too
        if (zone / "name").read_text().startswith(COUNTED):
            size = float((zone / "max_energy_range_uj").read_text()) / 1e6
            yield EnergyCounter(partial(_joules, zone / "energy_uj"), size)


def hardware(device: str) -> str:
    """Return the name of the processor, or of the GPU if the run uses one."""
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


def _gpu_counters() -> Iterator[EnergyCounter]:
    """Find the energy counters of the GPUs that this machine's processes use."""
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
    with suppress(pynvml.NVMLError):  # no driver, or a partition of a GPU
        pynvml.nvmlInit()
        for local_rank in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{cuda.get_device_properties(local_rank).uuid}")
            yield EnergyCounter(partial(joules, handle))


def _peak_memory() -> int:
    """Return this process's peak memory in bytes; Linux reports kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
