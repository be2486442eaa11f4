"""What a model is sampled from where it computes in bf16: a copy whose linear weights lie there, adapters merged."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.learning.models.forward import compute_dtype, has_adapters, unwrapped
from tasks.learning.models.precision import LINEAR, is_plain, linear_layers, round_layer
from tasks.learning.sharding import full_weights, unsharded, weightless

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear


@contextmanager
def sampled_from(model: nn.Module) -> Iterator[nn.Module]:
    """Give what a model, sharded or not, is sampled from inside the block; there ranks may run it differently often."""
    if compute_dtype(model) == torch.float32:
        with unsharded(model):
            yield model
    else:
        yield sampling_copy(model)


@torch.no_grad()
def sampling_copy(model: nn.Module) -> nn.Module:
    """Give what a model is sampled from: itself in fp32; in bf16 a copy whose linear layers all lie in bf16.

    Without it every token would round all weights anew. Adapters are merged into the copy, which rounds otherwise than
    adding their outputs does; a quantised layer keeps its own. The two share all weights that are the same in both. Of
    a sharded model all ranks take part, and each holds one gathered weight in fp32 at a time.
    """
    dtype = compute_dtype(model)
    if dtype == torch.float32:
        return model
    copied = weightless(model)
    if copied is None:
        shared = chain(model.parameters(), model.buffers())
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    else:
        _gather(model, copied, dtype)
        if has_adapters(model):
            _switch_off_adapters(model, copied)
    inner = unwrapped(copied)
    if has_adapters(copied):
        _merge_adapters(inner)
    for layer in linear_layers(inner):
        round_layer(layer, dtype)
    return inner


def _gather(model: nn.Module, copied: nn.Module, dtype: torch.dtype) -> None:
    """Give a copy the full weights of a sharded model, those of linear layers rounded at once."""
    rounded = {id(layer) for layer in linear_layers(copied)}
    for name, weight in full_weights(model):
        owner, _, attribute = name.rpartition(".")
        layer = copied.get_submodule(owner)
        value = weight.to(dtype) if id(layer) in rounded else weight
        setattr(layer, attribute, nn.Parameter(value, requires_grad=False))
    unwrapped(copied).tie_weights()


def _switch_off_adapters(model: nn.Module, copied: nn.Module) -> None:
    """Have those adapters of a copy add nothing that are switched off in the model."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and layer.disable_adapters:
            other = copied.get_submodule(name)
            assert isinstance(other, LoraLayer)
            other.enable_adapters(enabled=False)


def _merge_adapters(model: nn.Module) -> None:
    from peft.tuners.lora import Linear as LoraLinear

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear)]
    for name, layer in layers:
        base = layer.get_base_layer()
        if isinstance(base, LINEAR) and is_plain(base.weight):
            model.set_submodule(name, _merged(base, layer))


def _merged(base: nn.Linear | Conv1D, layer: "LoraLinear") -> nn.Module:
    """Add a linear layer's adapters to its weight, in fp32, unless they are switched off."""
    weight = base.weight.float()
    if not layer.disable_adapters:
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter)
    base.weight = nn.Parameter(weight, requires_grad=False)
    return base
