"""What a variant is given, and the clock it is timed by."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.learning.ppo.advantages import masked_mean

SEED, BETA = 7, 0.1
ONLINE = ("rloo", "ppo")
STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Job(NamedTuple):
    """A piece of work that every variant of a kind does.

    A step is an optimiser step on a batch; where answers are sampled it is a round: answering all prompts once and, in
    rloo and ppo, learning from the answers.
    """

    kind: str  # sft, reward, dpo, generate, rloo, ppo
    size: str  # a key of workloads.SIZES
    folder: Path  # the model's
    reward_folder: Path  # the same model with a scalar head
    precision: str  # fp32 or bf16
    steps: int  # counted ones
    batch_size: int = 8  # rows or pairs in a step
    learning_rate: float = 1e-4  # of sft, reward and dpo
    threads: int = 1
    tokens: int = 8192  # of a forward and backward pass
    answers: int = 64  # sampled in a round
    longest: int = 128  # tokens of an answer
    by_wall: bool = False  # seconds of the wall clock count, not those of the CPU
    rows_at_once: int | None = None  # of TRL, which pads, in a forward and backward pass; None: all of a step
    compiled: bool = False  # layers of our trained models, by torch

    @property
    def is_sampled(self) -> bool:
        """Whether answers are sampled, so that their tokens are what the time is divided by."""
        return self.kind == "generate" or self.kind in ONLINE

    @property
    def warm_up(self) -> int:
        """Steps that are not counted; a round of answers is some hundred passes, so that one warms up enough."""
        return 1 if self.is_sampled else 2

    @property
    def all_steps(self) -> int:
        """Steps there are, the warm-up included."""
        return self.steps + self.warm_up

    @property
    def rows(self) -> int:
        """Rows or pairs there are."""
        return self.all_steps * self.batch_size

    @property
    def responses(self) -> int:
        """Answers to each prompt of a round."""
        return 2 if self.kind == "rloo" else 1


class Measured(NamedTuple):
    """What one run of a variant took."""

    cpu: float  # seconds
    wall: float  # seconds
    figures: list[dict[str, float]]  # of every step, warm-up included: its loss, or what `described` says
    peak_memory: float  # MiB of the process, or of the device where that is a GPU


class Clock:
    """Notes when steps end; stands for a run in MLflow, so that trainers call it."""

    def __init__(self, warm_up: int) -> None:
        forget_peak_memory()
        self._warm_up = warm_up
        self._cpu = [time.process_time()]
        self._wall = [time.perf_counter()]
        self._figures: list[dict[str, float]] = []
        self._before = (0.0, 0.0)

    def record(self, **figures: float) -> None:
        """End a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._cpu.append(time.process_time())
        self._wall.append(time.perf_counter())
        self._figures.append(figures)

    @contextmanager
    def before_the_steps(self) -> Iterator[None]:
        """Count work that all steps need, such as what the reference says of all rows."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self._before = time.process_time() - cpu, time.perf_counter() - wall

    def measured(self) -> Measured:
        """Sum up, without the warm-up and its share of what came before."""
        counted = 1 - self._warm_up / len(self._figures)
        cpu, wall = (each[-1] - each[self._warm_up] for each in (self._cpu, self._wall))
        before_cpu, before_wall = (each * counted for each in self._before)
        return Measured(cpu + before_cpu, wall + before_wall, self._figures, peak_memory())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a step."""
        del step
        self.record(loss=metrics["loss"])

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Note the final figures: there is no run to note them in."""

    def model(self, folder: Path) -> None:
        """Note the model that was written: none is."""


def described(scores: Tensor, log_ratios: Tensor, entropies: Tensor, mask: Tensor) -> dict[str, float]:
    """Describe a round of B answers in columns L before it is learned from.

    Args:
        scores: (B,) of the reward model.
        log_ratios: (B, L) log-probabilities under the policy less those under the reference.
        entropies: (B, L) nats.
        mask: (B, L) bool, the answers' tokens.
    """
    return {
        "answers": len(scores),
        "tokens": int(mask.sum()),
        "reward": float(scores.mean()),
        "kl": float(masked_mean(log_ratios, mask)),  # nats a token, as TRL reports it
        "entropy": float(masked_mean(entropies, mask)),
    }


def forget_peak_memory() -> None:
    """Have the peak begin anew, so that it is that of one run."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5", encoding="ascii")


def peak_memory() -> float:
    """Most memory since `forget_peak_memory`, in MiB: of the device where that is a GPU, else of the process.

    Not `ru_maxrss` where there is /proc: it begins at what the starting process held, and never falls.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if CLEAR_PEAK.exists():
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
