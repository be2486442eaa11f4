"""Shards a tiny reward model in one process of several, and writes where its weights lie to `placement-RANK.json`."""

import json
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from tasks.learning import processes
from tasks.learning.sharding import is_sharded, shard
from tests.tiny import tiny_reward


def main() -> None:
    processes.initialise(torch.device("cpu"))
    model = tiny_reward()
    shard(model)
    groups = [
        group
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for group in module._get_fsdp_state()._fsdp_param_groups
    ]
    placement = {
        "policies": [type(group.offload_policy).__name__ for group in groups],
        "not_sharded": [name for name, weight in model.named_parameters() if not is_sharded(weight)],
    }
    Path(f"placement-{processes.rank()}.json").write_text(json.dumps(placement), encoding="utf-8")
    distributed.barrier()  # the first that ends takes with it what the others meet by
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
