"""Trains in a process of its own that is killed at a chosen point, or waits there for whatever the test will do to it.

The processes are forked from one that has imported everything, so that a kill costs a moment.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from accelerate import Accelerator

from tasks import dpo, ppo, reward, sft, stage
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.training import checkpoints, curves
from tasks.learning.training.checkpoints import Checkpoints
from tasks.registry.mlflow_runs import tracking
from tasks.settings.params import PARAMS_FILE, Params
from tests.conftest import NotedRun

POINTS: dict[str, tuple[Any, str]] = {
    "sampling": (PPOTrainer, "sample"),
    "backward": (Accelerator, "backward"),
    "moved": (torch.optim.AdamW, "step"),  # the weights have moved, and nobody has noted it
    "half saved": (checkpoints, "write_checksums"),  # the files are there, and nothing says that they are whole
    "saved": (Checkpoints, "_drop_others"),  # the older ones are still there
    "half published": (curves, "write_json"),  # the model is written, its metrics are not
}
WAITS, PRINTED, LOGGED = Path("waits"), Path("printed"), Path("logged.json")


class Blow(NamedTuple):
    """Where a process is struck."""

    point: str
    call: int = 1  # which time that it comes there


def die() -> None:
    """End as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    """Say that the point is reached, and stay there."""
    WAITS.touch()
    time.sleep(60)


def linger() -> None:
    """Say that the point is reached, and stay until there has been time for a signal."""
    WAITS.touch()
    time.sleep(2)


def strike(blow: Blow, act: Callable[[], None]) -> None:
    """Have something happen at a point."""
    owner, name = POINTS[blow.point]
    real, calls = getattr(owner, name), count(1)

    def struck(*arguments: Any, **names: Any) -> Any:
        here = next(calls) == blow.call
        if here and blow.point != "moved":
            act()
        result = real(*arguments, **names)
        if here and blow.point == "moved":
            act()
        return result

    setattr(owner, name, struck)


def train(name: str, blow: Blow | None, act: Callable[[], None]) -> None:
    """Run a trainer as a stage's process does; what it says and logs lies in files."""
    noted = NotedRun()

    @contextmanager
    def run(*_: Any, **__: Any) -> Any:
        yield noted
        steps = [(step, row) for step, row in noted.rows if not any(each.startswith("speed/") for each in row)]
        LOGGED.write_text(json.dumps([steps, noted.figures]), encoding="utf-8")

    tracking.run = run
    vars(stage)["exit_with_parent"] = lambda: None
    if blow:
        strike(blow, act)
    with PRINTED.open("w", encoding="utf-8", buffering=1) as sys.stderr:
        stage.main(getattr(import_module(f"tasks.{name}"), name))


def start(name: str, params: Params, blow: Blow | None = None, act: Callable[[], None] = die) -> ForkServerProcess:
    """Begin training in a process forked from one that has imported this module."""
    PARAMS_FILE.write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train, args=(name, blow, act))
    process.start()
    return process


def end_of(process: ForkServerProcess, seconds: float = 120) -> int | None:
    """Wait for the exit code; negative where a signal ended the process."""
    process.join(seconds)
    return process.exitcode


TRAINERS = (sft, reward, dpo, ppo)  # imported for those who are forked
