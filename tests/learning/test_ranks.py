"""Two processes that train together take the steps that one would take alone, but for rounding."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.data.files import MODELS
from tasks.dpo import dpo
from tasks.learning import ranks
from tasks.ppo import ppo
from tasks.reward import reward
from tasks.sft import sft
from tests.conftest import ROOT, MakeParams, NotedRun

STAGES = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}
PPO = {"iterations": 3, "rollouts": 7, "minibatches": 2, "max_new_tokens": 8, "critic_warmup": 1}


def curve(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_train_as_one_does(workspace: Path, make_params: MakeParams, noted_run: NotedRun):
    params = make_params(ppo=PPO)
    for train in STAGES.values():
        train(params)
    alone = {stage: curve(Path(f"curves/{stage}.csv")) for stage in STAGES}
    for stage in ("sft", "reward"):  # what the later ones start from, made alone
        shutil.copytree(MODELS / stage, workspace / "kept" / stage)
    shutil.rmtree("curves")
    Path("settings.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")

    # On CPUs accelerate's own launcher wants mpirun; told of GPUs it starts the processes itself, and they find none.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "tests.learning.together", "settings.yaml", *STAGES]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    for stage, expected in alone.items():
        together = curve(Path("together") / stage / f"{stage}.csv")
        assert len(together) == len(expected)
        for one, other in zip(together, expected, strict=True):
            assert one == pytest.approx(other, rel=5e-4, abs=1e-5)


def test_alone_there_is_nothing_to_add_up(monkeypatch: pytest.MonkeyPatch):
    assert (ranks.count(), ranks.number(), ranks.is_first()) == (1, 0, True)
    assert ranks.share([2, 0, 1], [5, 3, 9]) == [1, 0, 2]  # by length
    assert ranks.gathered([1, 2]) == [1, 2]
    assert ranks.summed({"loss": 2.0}) == {"loss": 2.0}


def test_shares_are_whole_and_alike(monkeypatch: pytest.MonkeyPatch):
    lengths = [9, 1, 8, 2, 7, 3, 6]
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append(ranks.share(range(7), lengths))
    assert sorted(shares[0] + shares[1]) == list(range(7))
    assert [sum(lengths[item] for item in share) for share in shares] == [20, 16]
