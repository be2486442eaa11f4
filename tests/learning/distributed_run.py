"""Trains in one process of several: test_distributed.py starts it through accelerate, in a folder with its inputs.

`python -m tests.learning.distributed_run settings.yaml sft reward dpo ppo`.
The curves of each stage lie in `together/<stage>/`.
`sft@3` ends with the checkpoint of step 3.
"""

import importlib
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import distributed

from tasks.learning import processes
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.registry.mlflow_runs import tracking
from tasks.settings.params import parse_params
from tests.conftest import NotedRun


@contextmanager
def unrecorded(*_: Any, **__: Any) -> Any:
    yield NotedRun()


class EnoughError(Exception):
    """The checkpoint that was wanted is saved."""


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End training with the checkpoint of a step."""
    save = Checkpoints.save

    def save_and_stop(self: Checkpoints, progress: Progress, *, final: bool = False) -> None:
        save(self, progress, final=final)
        if progress.step == step:
            raise EnoughError

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def main(settings: str, *stages: str) -> None:
    tracking.run = unrecorded
    params = parse_params(yaml.safe_load(Path(settings).read_text(encoding="utf-8")))
    for stage, _, last in (each.partition("@") for each in stages):
        if last:
            stop_after(int(last), pytest.MonkeyPatch())
        with suppress(EnoughError):
            getattr(importlib.import_module(f"tasks.{stage}"), stage)(params)
        distributed.barrier()
        if processes.is_main() and not last:
            shutil.copytree("curves", f"together/{stage}", dirs_exist_ok=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
