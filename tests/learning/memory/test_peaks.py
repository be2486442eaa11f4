"""What is predicted is what a training takes, in a process of its own, as the kernel counts it."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tasks.learning.memory.stages import MemoryModel, RowLengths, Sharing
from tests.conftest import ROOT
from tests.learning.memory.peaks import settings_of
from tests.learning.memory.shapes import SHAPE, shape

PROMPT, ANSWER, COUNT = 32, 96, 32
# glibc would hold back what was freed, and take it for the next tensor.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measured(case: dict[str, Any]) -> int:
    command = [sys.executable, "-W", "ignore", "-m", "tests.learning.memory.peaks", json.dumps(case)]
    result = subprocess.run(command, env=os.environ | RETURNING, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are read from /proc")
def test_the_peak_is_predicted_within_15_per_cent():
    steps = {"epochs": 1, "batch_size": 16}
    runtime = {"max_tokens_per_micro_batch": 1024, "threads": 1}
    case = {
        "stage": "dpo",
        "shape": SHAPE,
        "rows": [PROMPT, ANSWER, COUNT],
        "settings": {
            "dpo": {**steps, "max_new_tokens": ANSWER},
            "runtime": runtime,
            "validate": {"max_new_tokens": ANSWER},
        },
    }
    lengths = RowLengths(PROMPT + ANSWER, PROMPT)
    predicted = MemoryModel(shape(), lengths, on_gpu=False).stage("dpo", settings_of(case), Sharing())
    learning = max(moment.total for moment in predicted.moments if moment.name == "learn")
    assert learning == pytest.approx(measured(case), rel=0.15)
