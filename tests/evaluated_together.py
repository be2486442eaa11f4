"""Evaluates in one process of several, with the policy of `models/sft` as the champion."""

import shutil
from pathlib import Path
from typing import Any

import yaml
from torch import distributed

from tasks import evaluate as stage
from tasks.common.files import MODELS
from tasks.registry.mlflow_runs import tracking
from tasks.settings.params import parse_params
from tests.learning.distributed_run import unrecorded


def main(settings: str) -> None:
    tracking.run = unrecorded
    vars(stage)["materialise"] = bring_champion
    stage.evaluate(parse_params(yaml.safe_load(Path(settings).read_text(encoding="utf-8"))))
    distributed.destroy_process_group()


def bring_champion(_hash: str, folder: Path, **_: Any) -> None:
    shutil.copytree(MODELS / "sft", folder)
