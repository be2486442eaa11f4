"""Trains in one process of several: started by test_ranks.py through accelerate, in a folder that holds what is read.

`python -m tests.learning.together settings.yaml sft reward dpo ppo`; the curves of each lie in `together/<trainer>/`.
"""

import importlib
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import distributed

from tasks.learning import ranks
from tasks.params import parse_params
from tasks.registry import tracking
from tests.conftest import NotedRun


@contextmanager
def unnoted(*_: Any, **__: Any) -> Any:
    yield NotedRun()


def main(settings: str, *stages: str) -> None:
    tracking.run = unnoted
    params = parse_params(yaml.safe_load(Path(settings).read_text(encoding="utf-8")))
    for stage in stages:
        getattr(importlib.import_module(f"tasks.{stage}"), stage)(params)
        distributed.barrier()
        if ranks.is_first():
            shutil.copytree("curves", f"together/{stage}", dirs_exist_ok=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
