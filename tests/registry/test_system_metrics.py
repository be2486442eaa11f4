"""What a run takes, by counters of the hardware that a test stands in for."""

import math
import os
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from tasks.registry.mlflow_runs import system_metrics
from tasks.registry.mlflow_runs.system_metrics import EnergyAndMemory, EnergyCounter, hardware, processor_counters


def zone(folder, place, name, joules, size=1000.0):
    path = folder / f"intel-rapl:{place}"
    path.mkdir(exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{size * 1e6:.0f}\n")
    (path / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")


@pytest.fixture
def clock(monkeypatch):
    """A time of day that a test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    return now


def test_a_counter_counts_from_where_it_began_and_over_its_end(clock):
    counts = iter([900.0, 950.0, 20.0])
    counter = EnergyCounter(lambda: next(counts), size=1000.0)
    counter.update()
    assert counter.joules == 50.0
    counter.update()
    assert counter.joules == 120.0  # 950 to 1000, and 0 to 20


def test_a_counter_that_may_have_gone_round_twice_tells_nothing(clock):
    counter = EnergyCounter(lambda: 5.0, size=1000.0)
    clock.seconds = 0.9  # 900 joules at most
    counter.update()
    assert counter.joules == 0.0
    clock.seconds += 1.1
    counter.update()
    clock.seconds += 0.1
    counter.update()
    assert math.isnan(counter.joules)


def test_packages_and_their_memory_are_counted_once(tmp_path, monkeypatch, clock):
    for place, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys")):
        zone(tmp_path, place, name, 100.0)
    monkeypatch.setattr(system_metrics, "processor_counters", lambda: processor_counters(tmp_path))
    meter = EnergyAndMemory("cpu")
    for place, name, joules in (("0", "package-0", 130.0), ("0:0", "core", 900.0), ("0:1", "dram", 107.0)):
        zone(tmp_path, place, name, joules)
    meter.collect_metrics()
    # 30 of the first package, 7 of its memory, none of the second; the cores are part of the package
    assert meter.aggregate_metrics()["processor_energy_joules"] == pytest.approx(37.0)
    meter.clear_metrics()  # as MLflow does after each sending
    assert meter.aggregate_metrics()["processor_energy_joules"] == pytest.approx(37.0)


def test_a_counter_that_may_not_be_read_is_left_out(tmp_path, monkeypatch):
    zone(tmp_path, "0", "package-0", 100.0)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()  # root reads whatever permissions forbid
    monkeypatch.setattr(system_metrics, "processor_counters", lambda: processor_counters(tmp_path))
    meter = EnergyAndMemory("cpu")
    meter.collect_metrics()
    assert set(meter.aggregate_metrics()) == {"peak_memory_megabytes"}


def test_where_nothing_counts_energy_there_is_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "processor_counters", lambda: processor_counters(tmp_path / "none"))
    held = psutil.Process().memory_info().rss / 1e6
    figures = EnergyAndMemory("cpu").aggregate_metrics()
    assert set(figures) == {"peak_memory_megabytes"}
    assert held * 0.99 <= figures["peak_memory_megabytes"] < 1e6  # the kernel counts pages now and then


class Gpus:
    """Stands in for torch.cuda and NVML with two GPUs, of which NVML knows the energy in millijoules."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, **energy):
        self.energy = energy
        self.cuda = SimpleNamespace(
            get_device_properties=lambda place: SimpleNamespace(uuid=f"u{place}"),
            get_device_name=lambda: "NVIDIA H100",
            max_memory_allocated=lambda: 5_000_000,
        )

    def nvmlInit(self):  # noqa: N802 (NVML's name)
        if not self.energy:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self.energy[handle.removeprefix("GPU-")]


def on_gpus(monkeypatch, gpus):
    monkeypatch.setattr(system_metrics, "processor_counters", lambda: [])
    monkeypatch.setitem(sys.modules, "torch", gpus)
    monkeypatch.setitem(sys.modules, "pynvml", gpus)


@pytest.mark.parametrize(("processes", "joules"), [("1", 3.0), ("2", 7.0)])
def test_the_gpus_that_compute_are_counted(monkeypatch, processes, joules):
    gpus = Gpus(u0=1000, u1=2000)
    on_gpus(monkeypatch, gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    meter = EnergyAndMemory("cuda")
    gpus.energy = {"u0": 4000, "u1": 6000}  # 3 joules more, and 4
    meter.collect_metrics()
    figures = meter.aggregate_metrics()
    assert figures["gpu_energy_joules"] == pytest.approx(joules)
    assert figures["gpu_peak_memory_megabytes"] == 5.0


@pytest.mark.parametrize("nvml", [Gpus(), None])
def test_a_gpu_that_nobody_asks_for_its_energy_has_none(monkeypatch, nvml):
    on_gpus(monkeypatch, Gpus())
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: an import fails
    assert "gpu_energy_joules" not in EnergyAndMemory("cuda").aggregate_metrics()


def test_the_hardware_has_a_name(tmp_path, monkeypatch):
    cpus = tmp_path / "cpuinfo"
    cpus.write_text("processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n")
    monkeypatch.setattr(system_metrics, "PROCESSORS", cpus)
    assert hardware("cpu") == f"AMD EPYC, {os.cpu_count()} logical cores"
    cpus.write_text("")
    assert hardware("cpu").endswith(f" {os.cpu_count()} logical cores")
    monkeypatch.setitem(sys.modules, "torch", Gpus())
    assert hardware("cuda") == "NVIDIA H100"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert hardware("cuda") == "NVIDIA H100, 4 processes"
