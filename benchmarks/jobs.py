"""What a variant is given, and the clock it is timed by."""

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

SEED, BETA = 7, 0.1
WARM_UP = 2  # steps that are not counted


class Job(NamedTuple):
    """A piece of work that every variant of a kind does."""

    kind: str  # sft, reward, dpo, generate
    size: str  # a key of workloads.SIZES
    folder: Path  # the model's
    reward_folder: Path  # the same model with a scalar head
    precision: str  # fp32 or bf16
    steps: int  # counted ones
    batch_size: int = 8  # rows or pairs in a step
    learning_rate: float = 1e-4
    threads: int = 1
    tokens: int = 8192  # of a forward and backward pass

    @property
    def answered(self) -> int:
        """How often all prompts are answered: a step of sampling is some hundred passes."""
        return WARM_UP + max(1, self.steps // 5)

    @property
    def rows(self) -> int:
        """Rows or pairs there are."""
        return (self.steps + WARM_UP) * self.batch_size


class Measured(NamedTuple):
    """What one run of a variant took."""

    cpu: float  # seconds
    wall: float  # seconds
    figures: list[float]  # a loss for every step, warm-up included; tokens where answers are sampled
    peak_memory: float  # MiB of the process, or of the device where that is a GPU


class Clock:
    """Notes when steps end; stands for a run in MLflow, so that trainers call it."""

    def __init__(self) -> None:
        self._cpu = [time.process_time()]
        self._wall = [time.perf_counter()]
        self._figures: list[float] = []
        self._before = (0.0, 0.0)

    def mark(self, figure: float) -> None:
        """End a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._cpu.append(time.process_time())
        self._wall.append(time.perf_counter())
        self._figures.append(figure)

    @contextmanager
    def before_the_steps(self) -> Iterator[None]:
        """Count work that all steps need, such as what the reference says of all rows."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self._before = time.process_time() - cpu, time.perf_counter() - wall

    def measured(self) -> Measured:
        """Sum up, without the warm-up and its share of what came before."""
        counted = 1 - WARM_UP / len(self._figures)
        cpu, wall = (each[-1] - each[WARM_UP] for each in (self._cpu, self._wall))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        return Measured(cpu + self._before[0] * counted, wall + self._before[1] * counted, self._figures, peak)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a step."""
        del step
        self.mark(metrics["loss"])

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Note the final figures: there is no run to note them in."""

    def model(self, folder: Path) -> None:
        """Note the model that was written: none is."""
