"""Weights, gradients and optimiser state in shards, one per rank, by torch's FSDP2.

A layer's weights are gathered just before it runs and freed after it, so all ranks must run the model equally often.
Where they cannot (sampling, measuring shares of unequal size) all weights are gathered first, by `unsharded`.
With offload the shards lie in CPU memory with their gradients and optimiser state, where clipping and AdamW run too.

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
from tasks.learning.models.forward import BODY, compute_device, plain_head, set_compute_device, unwrapped

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

# Of each sharded model a copy from before, without its weights.
_copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def shard(model: nn.Module) -> None:
    """Shard a model's weights in place, under FSDP.

    Gradients are summed over the ranks, as `processes.all_reduce_gradients` does without FSDP.
    """
    if not processes.uses_fsdp():
        return
    inner = unwrapped(model)
    if inner.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        plain_head(model)  # tried out now, while ranks need not run the model equally often
    without_weights = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    _copies[model] = copy.deepcopy(model, memo=without_weights)
    set_compute_device(model, compute_device(model))
    _fully_shard(model)


def _fully_shard(model: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    inner, device = unwrapped(model), compute_device(model)
    mesh = init_device_mesh(device.type, (processes.world_size(),))
    policy: OffloadPolicy = OffloadPolicy()
    if processes.offloads_to_cpu():
        policy = CPUOffloadPolicy(pin_memory=device.type == "cuda")  # torch pins nothing without a GPU
    for layer in inner.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
    # The head is needed again for the gradient.
    fully_shard(inner, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
    for part in _fsdp_modules(model):
        part.set_force_sum_reduction_for_comms(True)  # gloo can neither scale nor average
        part.set_gradient_divide_factor(1.0)
    # Past nn.Module.__setattr__, which would register the body as a second submodule.
    object.__setattr__(inner, BODY, partial(inner.base_model))
    register_fsdp_forward_method(inner, BODY)


@contextmanager
def unsharded(*models: nn.Module | None) -> Iterator[None]:
    """Gather the weights of some models for a block without gradients, which ranks may run differently often."""
    present = [model for model in models if model is not None]
    parts = [part for model in present for part in _fsdp_modules(model)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(isinstance(part, GradientCheckpointingLayer), recurse=False)


def weightless(model: nn.Module) -> nn.Module | None:
    """Give a copy of a sharded model as it was before, with weights on the meta device; None: it is not sharded."""
    return copy.deepcopy(_copies[model]) if model in _copies else None


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a sharded model's weights by name, each gathered when its turn comes; all ranks take part."""
    for part in _fsdp_modules(model):
        part.reshard()
    for name, weight in model.named_parameters():
        yield name, _full_tensor(weight.detach()).to(compute_device(model))


def full_model(model: nn.Module) -> nn.Module:
    """Give the unsharded model with the current weights; one that was not sharded is given back.

    All ranks get one, so each needs memory for all weights, but not for gradients or optimiser state.
    """
    if model not in _copies:
        return model
    full = _copies.pop(model)
    full.load_state_dict(dict(full_weights(model)), strict=False, assign=True)
    unwrapped(full).tie_weights()
    return full


def full_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the sharded tensors of a state dict; all ranks take part, and each gets them."""
    if not processes.uses_fsdp():
        return dict(state)
    found: dict[str, Any] = tree_map_only(Tensor, _full_tensor, dict(state))
    return found


def _full_tensor(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def set_full_value(weight: Tensor, values: Tensor) -> None:
    """Set a weight, sharded or not, to the values of a full tensor; all ranks take part."""
    weight.copy_(_shard_like(values, weight))


def is_sharded(weight: Tensor) -> bool:
    """Whether this rank holds only a shard of a weight."""
    if not processes.uses_fsdp():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


def _shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Give this rank's shard of a full tensor, sharded as a weight is; all of it if the weight is not sharded."""
    if not is_sharded(weight):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    part = distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)
    return part.to(weight.device)  # of an offloaded weight the mesh's device is another


def _fsdp_modules(model: nn.Module) -> "list[FSDPModule]":
    if model not in _copies:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
