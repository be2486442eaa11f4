"""The sft stage without MLflow; it stays within the step that the file `wait` names, and says in `pid` who it is."""

import os
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.learning.processes import MicroBatch
from tasks.learning.training.supervised import TrainingStep
from tasks.registry.mlflow_runs import tracking
from tasks.sft import sft
from tasks.stage import main
from tests.conftest import NotedRun

WAIT, PID = Path("wait"), Path("pid")
backward = TrainingStep.backward


@contextmanager
def unrecorded(*_: Any, **__: Any) -> Any:
    yield NotedRun()


def wait_in_backward(self: TrainingStep, micro_batch: MicroBatch, losses: Mapping[str, Tensor]) -> None:
    if WAIT.exists() and int(WAIT.read_text()) == self.number:
        PID.write_text(str(os.getpid()))
        time.sleep(60)
    backward(self, micro_batch, losses)


if __name__ == "__main__":
    tracking.run = unrecorded
    TrainingStep.backward = wait_in_backward  # type: ignore[method-assign]
    main(sft)
