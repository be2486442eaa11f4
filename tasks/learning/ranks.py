"""Several processes that train one model together: each works on its share of every step, and all take the same step.

`accelerate launch` starts them and says in the environment who is who. Losses are sums divided by the counts of the
whole step, so gradients of the shares add up to that of the step, however it is shared.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Item = TypeVar("Item")


def join(device: torch.device) -> None:
    """Meet the other processes of this run, if there are any."""
    if count() > 1 and not distributed.is_initialized():
        from accelerate import PartialState

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


def share(items: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Give this process's share of some items: every n-th by length, so that all have about as much to do."""
    return sorted(items, key=lengths.__getitem__)[number() :: count()]


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


def gathered(items: Sequence[Item]) -> list[Item]:
    """Give all processes the items of all, those of the first process first."""
    if count() == 1:
        return list(items)
    found: list[Sequence[Item] | None] = [None] * count()
    distributed.all_gather_object(found, items)
    return [item for each in found for item in each or ()]


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
