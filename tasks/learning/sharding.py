"""Weights, gradients and optimiser state in shards, one per rank, by torch's FSDP2.

A layer's weights are gathered just before it runs and freed after it, so all ranks must run the model equally often.
Where they cannot (sampling) all weights are gathered first, by `unsharded`.
With offload the shards lie in CPU memory with their gradients and optimiser state, where clipping and AdamW run too.

Source: Zhao et al. 2023, "PyTorch FSDP".
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.learning import processes
from tasks.learning.models.forward import BODY, compute_device, plain_head, set_compute_device, unwrapped
from tasks.learning.models.merging import merged

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

# Of each sharded model a copy from before, without its weights.
_copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def shard(model: nn.Module) -> None:
    """Shard a model's weights in place, under FSDP; one that is sharded already stays as it is.

    Gradients are summed over the ranks, as `GradientSums` does without FSDP.
    """
    if not processes.uses_fsdp() or model in _copies:
        return
    inner = unwrapped(model)
    if inner.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        plain_head(model)  # tried out now, while ranks need not run the model equally often
    without_weights = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    # What is learned of its scores is written into the config of the model that is measured.
    _copies[model] = copy.deepcopy(model, memo={**without_weights, id(inner.config): inner.config})
    set_compute_device(model, compute_device(model))
    _fully_shard(model)


def _fully_shard(model: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    inner, device = unwrapped(model), compute_device(model)
    groups = processes.replicas()
    shape = (groups, processes.world_size() // groups)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    mesh = mesh if groups > 1 else mesh["shard"]
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


def trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name; of a sharded model this rank's shards."""
    for part in _fsdp_modules(model):
        part.reshard()  # a pass without a gradient leaves the root's weights gathered
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def measurable(model: nn.Module) -> nn.Module:
    """Give a trained model as its held-out figures are taken: with merged adapters, or sharded as it is."""
    return model if model in _copies else merged(model)


def weightless(model: nn.Module) -> nn.Module | None:
    """Give a copy of a sharded model as it was before, with weights on the meta device; None: it is not sharded."""
    return copy.deepcopy(_copies[model]) if model in _copies else None


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a sharded model's weights by name, each gathered when its turn comes; all ranks take part."""
    for part in _fsdp_modules(model):
        part.reshard()
    for name, weight in model.named_parameters():
        yield name, whole(weight.detach()).to(compute_device(model))


def full_model(model: nn.Module) -> nn.Module:
    """Give the unsharded model with the current weights; one that was not sharded is given back.

    All ranks take part. Rank 0 gets it on its CPU; a device holds one gathered weight at a time. The others' has no
    weights (meta device).
    """
    if model not in _copies:
        return model
    full = _copies.pop(model)
    weights: dict[str, Tensor] = {}
    for name, weight in full_weights(model):
        if processes.is_main():
            weights[name] = weight.cpu()
    if processes.is_main():
        full.load_state_dict(weights, strict=False, assign=True)
        unwrapped(full).tie_weights()
        nn.Module.to(full, "cpu")  # buffers, too
    return full


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank; one that is not sharded is given back."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a shard of a tensor."""
    if not processes.uses_fsdp():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _fsdp_modules(model: nn.Module) -> "list[FSDPModule]":
    if model not in _copies:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
