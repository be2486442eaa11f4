"""Several processes that train one model together: each works on its share of every step, and all take the same step.

`accelerate launch` starts them and says in the environment who is who. Losses are sums divided by the counts of the
whole step, so gradients of the shares add up to that of the step, however it is shared.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map_only

from tasks.common.errors import InputError
from tasks.learning.batches import micro_batches

Item = TypeVar("Item")


class Pass(NamedTuple):
    """One forward and backward pass: its items, and the factor of their gradient and figures."""

    items: list[int]
    weight: float = 1.0  # 0 where nothing is to be learned and other processes wait for company


def join(device: torch.device) -> None:
    """Meet the other processes of this run, if there are any."""
    if count() > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # every process loads its models itself
        PartialState(cpu=device.type == "cpu")


def count() -> int:
    """Say how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Say which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return number() == 0


def are_sharding() -> bool:
    """Whether `accelerate launch` was told that each process keeps a part of the weights that learn.

    Raises:
        InputError: it was told so for FSDP's first version.
    """
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise InputError("runtime.launcher: of FSDP only version 2 is used: take infra/accelerate/fsdp.yaml")
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and count() > 1


def share(items: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Give this process's share of some items: every n-th by length, so that all have about as much to do."""
    return shares(items, lengths)[number()]


def shares(items: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Give every process's share of some items."""
    by_length = sorted(items, key=lengths.__getitem__)
    return [by_length[each :: count()] for each in range(count())]


def passes(items: Sequence[int], lengths: Sequence[int], tokens: int) -> list[Pass]:
    """Split this process's share of a step into passes of at most `tokens` tokens.

    Processes that share weights must pass equally often: who has less to do repeats the shortest item, for nothing.
    """
    of_all = [list(micro_batches(each, lengths, tokens)) for each in shares(items, lengths)]
    mine = [Pass(group) for group in of_all[number()]]
    if are_sharding():
        idle = Pass([min(items, key=lengths.__getitem__)], weight=0.0)
        mine += [idle] * (max(len(groups) for groups in of_all) - len(mine))
    return mine


def add_up(*tensors: Tensor) -> None:
    """Make each tensor the sum of what all processes have in it."""
    if count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def add_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Make the gradients the sum of all processes'; one that had nothing to do adds zeros."""
    if count() > 1:
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(weight.grad)


def gathered(items: Sequence[Item], device: torch.device | str = "cpu") -> list[Item]:
    """Give all processes the items of all, those of the first process first; tensors come from others to `device`."""
    if count() == 1:
        return list(items)
    # A tensor would come back on the device that it was sent from, and a view with all that it is a view of.
    sent = tree_map_only(Tensor, lambda tensor: tensor.cpu().clone(), list(items))
    found: list[list[Item] | None] = [None] * count()
    distributed.all_gather_object(found, sent)
    received = [item for each in found for item in each or ()]
    placed: list[Item] = tree_map_only(Tensor, lambda tensor: tensor.to(device), received)
    return placed


def summed(figures: Mapping[str, float]) -> dict[str, float]:
    """Add up figures by name over all processes; names come in the order of the first that has them."""
    if count() == 1:
        return dict(figures)
    found: list[Mapping[str, float] | None] = [None] * count()
    distributed.all_gather_object(found, figures)
    sums: dict[str, float] = {}
    for each in found:
        for name, value in (each or {}).items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
