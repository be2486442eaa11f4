"""Weights, gradients and optimiser state in shards, one a process, by torch's FSDP2.

A layer's weights are put together just before they are needed and let go after, so all processes must pass through the
model equally often. Where they cannot (sampling, measuring shares of unequal size) the weights are put together before.

Source: Zhao et al. 2023, "PyTorch FSDP".
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.learning import processes
from tasks.learning.models.forward import BODY, plain_head, unwrapped

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

# What a sharded model looked like before, without its weights.
_plain: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def shard(model: nn.Module) -> None:
    """Cut a model's weights into shards, in place, if that was asked for.

    Gradients are summed over the processes, as `processes.all_reduce_gradients` does it for whole models.
    """
    if not processes.uses_fsdp():
        return
    inner = unwrapped(model)
    if inner.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        plain_head(model)  # found out while processes need not keep step
    without_weights = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    _plain[model] = copy.deepcopy(model, memo=without_weights)
    _fully_shard(model)


def _fully_shard(model: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    inner = unwrapped(model)
    mesh = init_device_mesh(inner.device.type, (processes.world_size(),))
    for layer in inner.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(inner, mesh=mesh, reshard_after_forward=False)  # the head is wanted again for the gradient
    for part in _parts(model):
        part.set_force_sum_reduction_for_comms(True)  # gloo can neither scale nor average
        part.set_gradient_divide_factor(1.0)
    # Past the class's own __setattr__, which would make the body a submodule twice.
    object.__setattr__(inner, BODY, partial(inner.base_model))
    register_fsdp_forward_method(inner, BODY)


@contextmanager
def unsharded(*models: nn.Module | None) -> Iterator[None]:
    """Put the shards of some models together for a block, in which processes need not keep step; no gradients there."""
    present = [model for model in models if model is not None]
    parts = [part for model in present for part in _parts(model)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(isinstance(part, GradientCheckpointingLayer), recurse=False)


def full_model(model: nn.Module) -> nn.Module:
    """Give a model as it was before it was sharded, with the weights of now; one that was not is given back.

    All processes get one, so each needs room for the whole model, but for no gradient or optimiser state.
    """
    if model not in _plain:
        return model
    for part in _parts(model):
        part.reshard()
    plain = _plain.pop(model)
    plain.load_state_dict(full_tensors(dict(model.named_parameters())), strict=False, assign=True)
    unwrapped(plain).tie_weights()
    return plain


def full_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Put the sharded tensors of a state dict together; all processes take part, and each gets them."""
    if not processes.uses_fsdp():
        return dict(state)
    found: dict[str, Any] = tree_map_only(Tensor, _full_tensor, dict(state))
    return found


def _full_tensor(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def set_full_value(weight: Tensor, values: Tensor) -> None:
    """Give a weight, sharded or not, the values of a whole tensor; all processes take part."""
    weight.copy_(shard_like(values, weight))


def is_sharded(weight: Tensor) -> bool:
    """Whether this process holds a shard of a weight only."""
    if not processes.uses_fsdp():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Give this process's shard of a whole tensor, cut as a weight is; of a weight that is not cut, all of it."""
    if not is_sharded(weight):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def _parts(model: nn.Module) -> "list[FSDPModule]":
    if model not in _plain:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
