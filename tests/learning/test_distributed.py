"""Two processes that train together take the steps that one would take alone, but for rounding."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import distributed

from tasks.common.files import MODELS
from tasks.data.encoding.tokens import load_tokenizer
from tasks.dpo import dpo
from tasks.kto import kto
from tasks.learning import processes
from tasks.learning.models.loading import new_reward_model, normalise_scores
from tasks.learning.models.saving import save_model
from tasks.learning.training.supervised import TrainingStep
from tasks.ppo import ppo
from tasks.reward import reward
from tasks.rewards.copies import TRAINING
from tasks.rewards.sources import write_copies
from tasks.settings.params import Params
from tasks.sft import sft
from tests.conftest import ROOT, MakeParams, NotedRun
from tests.learning.distributed_run import EnoughError, stop_after
from tests.learning.ranks import run_ranks

RUN, SETTINGS = "tests.learning.distributed_run", "settings.yaml"
STAGES = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto, "ppo": ppo}
# All that a reward model has besides its plain training.
REWARD = {"pooling": "mean", "head_init": "fit", "head_learning_rate": 5e-3, "early_stopping": 9}
PPO = {"iterations": 3, "rollouts": 7, "num_minibatches": 2, "max_new_tokens": 8, "critic_warmup": 1}

Curves = dict[str, list[dict[str, float]]]


def curve(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def alone(workspace: Path, make_params: MakeParams, noted_run: NotedRun) -> Curves:
    """The curves of one process, whose settings and models are left for several."""
    params = make_params(ppo=PPO, reward=REWARD)
    for train in STAGES.values():
        train(params)
        if train is reward:
            replace_reward_model(params)
    Path(SETTINGS).write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    curves = {stage: curve(Path(f"curves/{stage}.csv")) for stage in STAGES}
    assert min(row["score_std"] for row in curves["ppo"]) > 0.1  # else wrong scores of a process would not show
    shutil.rmtree("curves")
    return curves


def replace_reward_model(params: Params) -> None:
    """Take a reward model whose scores differ: after six steps those of the trained one are equal but for rounding."""
    model = new_reward_model(MODELS / "sft", params)
    normalise_scores(model, 0.1, 2.0)
    save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")


def train_together(config: str, *stages: str, count: int = 2) -> None:
    """Train in two processes, or another count, in the way of a file in infra/accelerate."""
    run_ranks(config, RUN, SETTINGS, *stages, count=count)


def launch(config: str, *stages: str) -> None:
    """Train in two processes that the launcher starts."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", f"{ROOT}/infra/accelerate/{config}.yaml", "-m", RUN, SETTINGS, *stages]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp", "fsdp_offload"])
def test_two_processes_train_as_one_does(config: str, alone: Curves):
    # The last first, so that each begins with what one process left; dpo twice, the second time from cache.
    start = launch if config == "ddp" else train_together
    start(config, "ppo", "kto", "dpo", "dpo", "reward", "sft")
    for stage, expected in alone.items():
        of_both = curve(Path("together") / stage / f"{stage}.csv")
        for one, other in zip(of_both, expected, strict=True):
            assert one == pytest.approx(other, rel=5e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_two_processes_train_a_shared_critic_as_one_does(
    config: str, workspace: Path, make_params: MakeParams, noted_run: NotedRun
):
    params = make_params(ppo=PPO | {"critic": "shared"}, runtime={"checkpoint_every": 1})
    save_model(new_reward_model(MODELS / "sft", params), load_tokenizer(MODELS / "sft"), MODELS / "reward")
    ppo(params)
    expected = curve(Path("curves/ppo.csv"))
    Path(SETTINGS).write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    train_together(config, "ppo@2", "ppo")  # of which the second goes on from the checkpoint of the first
    for one, other in zip(curve(Path("together/ppo/ppo.csv")), expected, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "rloo"},
        {"estimator": "grpo", "kl_estimator": "k2", "aggregation": "sequence", "dynamic_sampling": 2},
    ],
    ids=str,
)
def test_two_processes_score_by_functions_as_one_does(
    workspace: Path, make_params: MakeParams, noted_run: NotedRun, options: dict[str, object]
):
    Path("mine.py").write_text(
        "def keyed(answers, references):\n"
        "    return [sum(each in known[0] for each in answer) for answer, known in zip(answers, references)]\n"
    )
    rewards = [
        {"name": "keyed", "source": "mine.py:keyed", "weight": 0.5},
        {"name": "reward_model", "source": "model", "weight": 1.0},
    ]
    grouped: dict[str, object] = {"rollouts": 8, "responses_per_prompt": 2, "critic_warmup": 0}
    params = make_params(
        ppo=PPO | grouped | options, rewards={"code": "mine.py", "training": rewards, "ground_truth": []}
    )
    write_copies(TRAINING, params.rewards.training)
    save_model(new_reward_model(MODELS / "sft", params), load_tokenizer(MODELS / "sft"), MODELS / "reward")
    ppo(params)
    expected = curve(Path("curves/ppo.csv"))
    Path(SETTINGS).write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    train_together("ddp", "ppo")
    for one, other in zip(curve(Path("together/ppo/ppo.csv")), expected, strict=True):
        assert one == pytest.approx(other, rel=5e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["hsdp", "ddp"])
def test_four_processes_train_as_one_does(config: str, workspace: Path, make_params: MakeParams, noted_run: NotedRun):
    params = make_params()
    Path(SETTINGS).write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    sft(params)
    expected = curve(Path("curves/sft.csv"))
    train_together(config, "sft@2", "sft", count=4)
    for one, other in zip(curve(Path("together/sft/sft.csv")), expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "lora"), [("fsdp", 0), ("fsdp", 2), ("fsdp_offload", 0)])
def test_a_checkpoint_of_shards_is_taken_up_by_one_process_and_the_other_way_round(
    config: str,
    lora: int,
    workspace: Path,
    make_params: MakeParams,
    noted_run: NotedRun,
    monkeypatch: pytest.MonkeyPatch,
):
    params = make_params(lora={"rank": lora}, runtime={"checkpoint_every": 1})
    Path(SETTINGS).write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    sft(params)
    expected, noted_run.rows = noted_run.rows, []

    train_together(config, "sft@2")
    taken: list[int] = []
    take = TrainingStep._take

    def take_and_record(self: TrainingStep) -> None:
        taken.append(self.number)
        take(self)

    monkeypatch.setattr(TrainingStep, "_take", take_and_record)
    sft(params)
    assert taken == [3, 4, 5, 6]
    for (_, one), (_, other) in zip(noted_run.rows, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)

    whole = load_file(MODELS / "sft/model.safetensors")
    stop_after(4, monkeypatch)
    with pytest.raises(EnoughError):
        sft(params)
    train_together(config, "sft")
    for name, weight in load_file(MODELS / "sft/model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-5)
    for one, other in zip(curve(Path("together/sft/sft.csv")), curve(Path("curves/sft.csv")), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_one_process_may_offload_and_resume(workspace: Path, make_params: MakeParams, noted_run: NotedRun):
    params = make_params(runtime={"checkpoint_every": 1})
    Path(SETTINGS).write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    sft(params)
    train_together("fsdp_offload", "sft@2", "sft", count=1)
    for one, other in zip(curve(Path("together/sft/sft.csv")), curve(Path("curves/sft.csv")), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count", "policy"),
    [("fsdp", 2, "OffloadPolicy"), ("fsdp_offload", 2, "CPUOffloadPolicy"), ("fsdp_offload", 1, "CPUOffloadPolicy")],
)
def test_every_weight_is_sharded_and_offloaded_where_the_launcher_says_so(
    config: str, count: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run_ranks(config, "tests.learning.sharded_placement", count=count)
    placements = [json.loads(Path(f"placement-{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
    # Two layers and the root; clipping can mix no shards with other weights, which may lie on another device.
    assert placements == [{"policies": [policy] * 3, "not_sharded": []}] * count


@pytest.mark.slow
def test_no_process_gathers_what_all_save_or_restore_and_one_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run_ranks("fsdp", "tests.learning.sharded_checkpoints", count=2)
    for rank in range(2):
        found = json.loads(Path(f"checkpoint-{rank}.json").read_text(encoding="utf-8"))
        assert found["equal"]
        # Gathered they are three times as much, weights and two moments, and the best weights once more.
        assert found["remembering"] < 0.7 * found["all_weights"]
        assert found["saving"] < found["all_weights"]
        assert found["restoring"] < 2 * found["all_weights"]
        # The first process gets the model that is written, and the others nothing.
        assert found["gathering"] < (1.3 if rank == 0 else 0.3) * found["all_weights"]


@pytest.mark.slow
def test_all_processes_stop_where_one_cannot_read_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_ranks("fsdp", "tests.learning.sharded_checkpoints", "1", count=2)
    errors = [json.loads(Path(f"checkpoint-{rank}.json").read_text(encoding="utf-8"))["error"] for rank in range(2)]
    place = ".trueline/checkpoints/sft/step-00000002"
    cure = "all processes need the checkout on a file system that they share"
    assert errors == [f"{place}: process 1 cannot read it (Input/output error): {cure}"] * 2


@pytest.mark.slow
def test_gradients_travel_during_the_last_pass_and_are_the_sums_over_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run_ranks("ddp", "tests.learning.gradient_sums", count=2)
    for rank in range(2):
        found = json.loads(Path(f"gradients-{rank}.json").read_text(encoding="utf-8"))
        assert [each["given"] for each in found] == [each["expected"] for each in found]
        # Three layers' while the pass goes on; not that of the unused one, and none in a process without rows.
        assert [each["early"] for each in found] == ([3, 3, 3] * 2 if rank == 0 else [3, 3, 0] * 2)


def test_alone_there_is_nothing_to_add_up(monkeypatch: pytest.MonkeyPatch):
    assert (processes.world_size(), processes.rank(), processes.is_main()) == (1, 0, True)
    assert processes.share([2, 0, 1], [5, 3, 9]) == [1, 0, 2]  # by length
    assert processes.gathered([1, 2]) == [1, 2]
    assert processes.summed({"loss": 2.0}) == {"loss": 2.0}


def test_groups_of_all_ranks_hold_every_item_once_and_no_more_tokens_than_allowed(monkeypatch: pytest.MonkeyPatch):
    lengths, found = [9, 1, 8, 2, 7, 3, 6], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append([group.items for group in processes.groups_of_rank(lengths, 16)])
    # Every second by length; a group is as long as its longest item for each: 2 * 3, 7, 9 and 2 * 6, 8 tokens.
    assert found == [[[1, 5], [4], [0]], [[3, 6], [2]]]


def test_tensors_are_gathered_by_way_of_the_cpu_and_without_what_they_are_views_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    sent: list[bytes] = []

    def all_gather_object(found: list[Any], items: Any) -> None:
        sent.append(pickle.dumps(items))
        found[:] = [pickle.loads(sent[0]), [(1, torch.tensor([3.0]))]]

    monkeypatch.setattr(distributed, "all_gather_object", all_gather_object)
    everybodys = processes.gathered([(0, torch.zeros(10_000)[:2])], torch.device("meta"))
    assert [(number, tensor.shape, tensor.device.type) for number, tensor in everybodys] == [
        (0, (2,), "meta"),
        (1, (1,), "meta"),
    ]
    assert len(sent[0]) < 1000  # 10,000 numbers are 40 kB


def test_shares_are_whole_and_alike(monkeypatch: pytest.MonkeyPatch):
    lengths = [9, 1, 8, 2, 7, 3, 6]
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append(processes.share(range(7), lengths))
    assert sorted(shares[0] + shares[1]) == list(range(7))
    assert [sum(lengths[item] for item in share) for share in shares] == [20, 16]
