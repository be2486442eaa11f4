"""Saves, restores and gathers shards in one process of several, and writes what that took to `checkpoint-RANK.json`.

With an argument, the process of that number cannot read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.checkpoint import hf_storage, state_dict_saver  # noqa: F401 an import is no part of saving
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.common.errors import InputError
from tasks.learning import processes
from tasks.learning.sharding import full_model, shard
from tasks.learning.training import checkpoints as module
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.early_stopping import EarlyStopping
from tasks.learning.training.optimisation import adamw
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import Runtime, load_params
from tests.cli.conftest import raising
from tests.conftest import ROOT

LAYERS, WIDTH = 12, 384


def checkpoints_of(runtime: Runtime, seed: int) -> tuple[Checkpoints, torch.optim.Optimizer, torch.nn.Module]:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=6, vocab_size=512
    )
    model = LlamaForCausalLM(config).eval()
    shard(model)
    optimiser = adamw(model)
    return Checkpoints("sft", Fingerprint({}, {}), runtime, {"model": model}, {"model": optimiser}), optimiser, model


def resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most since `forget_peak`."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def peak_of(work: Any) -> int:
    """Bytes in memory at most while something runs, beyond those before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def same(one: Any, two: Any) -> bool:
    """Whether this process's parts of two tensors have the same bits."""
    return bool(one.to_local().equal(two.to_local()) if isinstance(one, DTensor) else one.equal(two))


def main(*unreadable_for: str) -> None:
    processes.initialise(torch.device("cpu"))
    runtime = load_params(ROOT / "params.yaml").runtime.model_copy(update={"checkpoint_every": 1})
    checkpoints, optimiser, model = checkpoints_of(runtime, 0)
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    stopping = EarlyStopping(model, lambda: 0.5, every=1, patience=1)
    found: dict[str, Any] = {"remembering": peak_of(lambda: stopping.at_step(0, 2))}
    progress = Progress(2, [{"loss": 0.5}], copies=stopping.copies)
    found["saving"] = peak_of(lambda: checkpoints.save(progress))
    again, other, sharded = checkpoints_of(runtime, 1)
    if [str(processes.rank())] == list(unreadable_for):
        pytest.MonkeyPatch().setattr(module, "own_share_is_intact", raising(OSError(5, "Input/output error")))
    try:
        found["restoring"] = peak_of(again.restore)
        found["equal"] = all(
            same(one, two) and all(same(value, other.state[two][kind]) for kind, value in optimiser.state[one].items())
            for one, two in zip(model.parameters(), sharded.parameters(), strict=True)
        )
    except InputError as error:
        found["error"] = str(error)
    found["gathering"] = peak_of(lambda: full_model(model))
    found["all_weights"] = sum(weight.numel() for weight in model.parameters()) * 4
    Path(f"checkpoint-{processes.rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
