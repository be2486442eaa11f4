"""Several processes that train one model: each works on its share of every step, and all take the same step.

`accelerate launch` starts them and sets RANK and WORLD_SIZE. Losses are sums divided by the counts of the whole step,
so the gradients of the shares add up to that of the step.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_map_only

from tasks.common.errors import InputError
from tasks.learning.batches import micro_batches

Item = TypeVar("Item")


class MicroBatch(NamedTuple):
    """One forward and backward pass: its items, and the factor of its gradient and metrics."""

    items: list[int]
    weight: float = 1.0  # 0 for a micro-batch that only keeps this rank in step with the others


def initialise(device: torch.device) -> None:
    """Connect to the other processes of this run, if there are any; FSDP needs a group of one process too."""
    if (world_size() > 1 or uses_fsdp()) and not distributed.is_initialized():
        from accelerate import PartialState

        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # every process loads its models itself
        os.environ["ACCELERATE_USE_PARALLELISM_CONFIG"] = "false"  # it is read here, and refused there on CPUs
        PartialState(cpu=device.type == "cpu")


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes the outputs: it is rank 0."""
    return rank() == 0


def uses_fsdp() -> bool:
    """Whether `accelerate launch` asks for FSDP: each rank holds a shard of the trainable weights.

    A single process has nothing to shard, but may offload to the CPU.

    Raises:
        InputError: it asks for FSDP's first version.
    """
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise InputError("runtime.launcher: only FSDP version 2 is supported: take infra/accelerate/fsdp.yaml")
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and (world_size() > 1 or offloads_to_cpu())


def offloads_to_cpu() -> bool:
    """Whether FSDP keeps shards, gradients and optimiser state in CPU memory (`fsdp_offload_params`)."""
    return os.environ.get("FSDP_OFFLOAD_PARAMS") == "true"


def replicas() -> int:
    """How many groups of processes hold all shards each under FSDP; more than one: hybrid sharding (HSDP).

    Raises:
        InputError: the groups cannot be of one size.
    """
    names = ("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "PARALLELISM_CONFIG_DP_SHARD_SIZE")
    if not all(name in os.environ for name in names):
        return 1
    groups, size = (int(os.environ[name]) for name in names)
    if groups * size != world_size():
        raise InputError(
            f"runtime.launcher: {world_size()} processes are not {groups} groups of {size}: set num_processes to "
            "dp_replicate_size times dp_shard_size"
        )
    return groups


def share(items: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Give this rank's share of some items: every n-th by length, so that all ranks have about the same work."""
    return shares(items, lengths)[rank()]


def shares(items: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Give every rank's share of some items."""
    by_length = sorted(items, key=lengths.__getitem__)
    return [by_length[each :: world_size()] for each in range(world_size())]


def groups_of_rank(lengths: Sequence[int], tokens: int) -> list[MicroBatch]:
    """Split this rank's share of all items into micro-batches of at most `tokens` tokens."""
    return micro_batches_of_rank(range(len(lengths)), lengths, tokens)


def micro_batches_of_rank(items: Sequence[int], lengths: Sequence[int], tokens: int) -> list[MicroBatch]:
    """Split this rank's share of a step into micro-batches of at most `tokens` tokens.

    Under FSDP all ranks need the same number of forward passes: one with fewer repeats the shortest item with weight 0.
    """
    of_all = [list(micro_batches(each, lengths, tokens)) for each in shares(items, lengths)]
    own = [MicroBatch(group) for group in of_all[rank()]]
    if uses_fsdp():
        idle = MicroBatch([min(items, key=lengths.__getitem__)], weight=0.0)
        own += [idle] * (max(len(groups) for groups in of_all) - len(own))
    return own


def all_reduce(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all ranks, in place."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def gathered(items: Sequence[Item], device: torch.device | str = "cpu") -> list[Item]:
    """Give all ranks the items of all ranks, in the order of the ranks; tensors are moved to `device`."""
    if world_size() == 1:
        return list(items)
    # A tensor would come back on the device that it was sent from, and a view with its whole storage.
    sent = tree_map_only(Tensor, lambda tensor: tensor.cpu().clone(), list(items))
    found: list[list[Item] | None] = [None] * world_size()
    distributed.all_gather_object(found, sent)
    received = [item for each in found for item in each or ()]
    placed: list[Item] = tree_map_only(Tensor, lambda tensor: tensor.to(device), received)
    return placed


def from_main(item: Item) -> Item:
    """Give all ranks what rank 0 has; what the others pass is not looked at."""
    if world_size() == 1:
        return item
    sent: list[Item] = [item]
    distributed.broadcast_object_list(sent, src=0)
    return sent[0]


def summed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Sum metrics by name over all ranks; names keep the order of the first rank that has them."""
    if world_size() == 1:
        return dict(metrics)
    found: list[Mapping[str, float] | None] = [None] * world_size()
    distributed.all_gather_object(found, metrics)
    sums: dict[str, float] = {}
    for each in found:
        for name, value in (each or {}).items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
