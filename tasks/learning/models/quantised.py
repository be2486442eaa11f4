"""Frozen linear layers whose weights lie in 4 or 8 bits: the base under adapters (QLoRA).

Each pass makes the weights again, in the dtype it computes in, one layer at a time, and keeps none for the gradient. So
a row's outputs depend neither on the rows beside it nor on whether it is sampled or learned from.

Source: Dettmers et al. 2023, "QLoRA"; the kernels are those of bitsandbytes.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tasks.common.errors import InputError
from tasks.learning import processes
from tasks.settings.choices import Quantisation

BLOCK_SIZE = 64  # weights that share a scale


class QuantisedLinear(nn.Linear):
    """A frozen linear layer in `nf4` (4 bits, scales quantised again) or `int8` (8 bits), blocks of 64 weights.

    Its `weight` holds the codes.
    """

    def __init__(self, layer: nn.Linear, kind: Quantisation, device: torch.device) -> None:
        """Quantise a layer on a device."""
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features, self.kind, self.bias = (
            layer.in_features,
            layer.out_features,
            kind,
            layer.bias,
        )
        weight = layer.weight.detach().to(device, torch.float32)
        # A block a row: bitsandbytes 0.50 errs on a CPU where a block ends within a row, but not in a single row.
        weight = weight.view(-1, BLOCK_SIZE) if weight.numel() % BLOCK_SIZE == 0 else weight.flatten()
        library = bitsandbytes_for(f"lora.quantize {self.kind}")
        if kind == "nf4":
            options = {"blocksize": BLOCK_SIZE, "quant_type": kind, "compress_statistics": True}
            packed, self.scales = library.quantize_4bit(weight, **options)
        else:
            levels = library.create_linear_map(signed=True, total_bits=8).to(device)
            packed, self.scales = library.quantize_blockwise(weight, levels, blocksize=BLOCK_SIZE)
        self.register_buffer("weight", packed)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that the layer computes with."""
        library = bitsandbytes_for(f"lora.quantize {self.kind}")
        make = library.dequantize_4bit if self.kind == "nf4" else library.dequantize_blockwise
        self.scales.dtype = dtype
        weight: Tensor = make(self.weight, self.scales)
        return weight.view(self.out_features, self.in_features)

    def forward(self, states: Tensor) -> Tensor:
        """Outputs (..., out) of states (..., in), in the dtype of autocast or else of the states."""
        device = states.device.type
        if torch.is_autocast_enabled(device):
            states = states.to(torch.get_autocast_dtype(device))
        result: Tensor = _Product.apply(states, self)  # type: ignore[no-untyped-call]
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantisedLinear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales.to(self.weight.device)
        return self


class _Product(torch.autograd.Function):
    """The product of states and a weight that is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: QuantisedLinear) -> Tensor:  # noqa: ANN401
        ctx.layer = layer
        return functional.linear(states, layer.dequantised(states.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


def quantise(
    model: PreTrainedModel, kind: Quantisation, device: torch.device, of_layer: type[QuantisedLinear] = QuantisedLinear
) -> None:
    """Quantise the linear layers of a model in place, one after the other; heads stay as they are.

    `of_layer` makes a layer's quantised one.

    Raises:
        InputError: bitsandbytes is not installed, weights are sharded, or there are no such layers.
    """
    if processes.uses_fsdp():
        raise InputError(
            f"params.yaml: lora.quantize {kind} cannot be sharded: start by python -m or infra/accelerate/ddp.yaml, "
            "or set it to null"
        )
    heads = (model.get_output_embeddings(), getattr(model, "score", None))  # type: ignore[no-untyped-call]
    found = [
        (name, module) for name, module in model.named_modules() if type(module) is nn.Linear and module not in heads
    ]
    if not found:
        raise InputError(
            f"params.yaml: lora.quantize {kind}: models of type {model.config.model_type} have no linear layers that "
            "can be quantised: set it to null"
        )
    for name, module in found:
        model.set_submodule(name, of_layer(module, kind, device))


def quantised_in(model: nn.Module) -> Quantisation | None:
    """What the linear layers of a model are quantised in."""
    return next((module.kind for module in model.modules() if isinstance(module, QuantisedLinear)), None)


def bitsandbytes_for(setting: str) -> Any:  # noqa: ANN401
    """Import the library's functions where a setting needs them, for that takes a second.

    Raises:
        InputError: it is not installed.
    """
    quiet_library()
    try:
        from bitsandbytes import functional as library
    except ImportError:
        raise InputError(
            f"params.yaml: {setting} needs bitsandbytes: pip install 'trueline[quantize]', or choose another value"
        ) from None
    return library


def quiet_library() -> None:
    """Have bitsandbytes, which peft loads where it is installed, not warn of kernels that are not used here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
