"""Models without data: built from a configuration alone, they have shapes, precisions and gradients, and no bytes.

Torch's fake tensors go through the same code as real ones, autocast and the choice of attention included.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.learning.models.attention import PACKED
from tasks.learning.models.forward import assume_plain_head, recompute_layers, set_compute_dtype, unwrapped
from tasks.learning.models.loading import with_adapters
from tasks.learning.models.precision import DTYPES, round_frozen, round_trained
from tasks.learning.models.quantised import BLOCK_SIZE, QuantisedLinear, quantise
from tasks.learning.training.lean_adamw import BLOCK_SIZE as MOMENTS_A_SCALE
from tasks.learning.training.lean_adamw import MIN_QUANTISED
from tasks.settings.choices import OptimiserName, Quantisation
from tasks.settings.params import Params

Kind = Literal["policy", "scorer"]  # a causal language model, or one with a scalar head
# Of a weight: its number, and its part of the scale of its block; that of nf4 is a byte, and 256 of them share a scale.
QUANTISED_BYTES: dict[Quantisation, float] = {
    "nf4": 1 / 2 + (1 + 4 / 256) / BLOCK_SIZE,
    "int8": 1 + 4 / BLOCK_SIZE,
}
# What a family's config says where logits are more than the head's products.
LOGITS_CHANGED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class UnloadedQuantised(QuantisedLinear):
    """A quantised layer without data: as many bytes, and the same passes."""

    def __init__(self, layer: nn.Linear, kind: Quantisation, device: torch.device) -> None:
        """Take the shape of a layer."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind, self.bias = kind, layer.bias
        size = math.ceil(QUANTISED_BYTES[kind] * layer.weight.numel())
        self.register_buffer("weight", torch.empty(size, dtype=torch.uint8, device=device))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Make room for the weight that the layer computes with."""
        return self.weight.new_empty(self.out_features, self.in_features, dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "UnloadedQuantised":
        nn.Linear._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        return self


class WeightBytes(NamedTuple):
    """The weights of a model, in bytes; `trained` are among `all`."""

    all: int
    trained: int
    moments: int  # of the optimiser, beside them
    layers: int  # of all: those of its layers, which are sharded one by one
    largest_layer: int


def unloaded_model(
    config: PreTrainedConfig, kind: Kind, params: Params, *, trainable: bool, layers: int | None = None
) -> nn.Module:
    """Build a model on the meta device as the stages load it: precisions, adapters, checkpointing.

    Args:
        config: of the model.
        kind: with which head.
        params: adapters and runtime.
        trainable: whether it learns.
        layers: only so many of its layers; None: all.
    """
    config = with_layers(config, layers)
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    if kind == "scorer":
        config.num_labels = 1
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers and peft, by their own names for checkpointing
        inner = auto.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        assert isinstance(inner, PreTrainedModel)
        if trainable and params.lora.quantize:
            quantise(inner, params.lora.quantize, torch.device("meta"), UnloadedQuantised)
        inner.train(False).requires_grad_(trainable)
        inner.set_attn_implementation(PACKED)
        set_compute_dtype(inner, DTYPES[params.runtime.precision])
        round_frozen(inner)
        if trainable and params.runtime.weights == "bf16":
            round_trained(inner)
        if trainable and params.runtime.gradient_checkpointing:
            inner.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
            recompute_layers(inner)
        return with_adapters(inner, params.lora) if trainable else inner


def with_layers(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    """Give a copy of a model's configuration, with fewer layers unless they are None."""
    shallow = copy.deepcopy(config)
    if layers is None:
        return shallow
    text = shallow.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shallow


def weight_bytes(model: nn.Module, optimiser: OptimiserName) -> WeightBytes:
    """Count the bytes of a model's weights, and of what an optimiser holds beside those that learn."""
    layers = [_bytes(module) for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return WeightBytes(
        all=_bytes(model),
        trained=sum(weight.nbytes for weight in model.parameters() if weight.requires_grad),
        moments=sum(_moments(weight, optimiser) for weight in model.parameters() if weight.requires_grad),
        layers=sum(layers),
        largest_layer=max(layers, default=0),
    )


def _moments(weight: Tensor, optimiser: OptimiserName) -> int:
    """The bytes of both moments of a weight: fp32, or codes of 8 bits with a scale a block."""
    if optimiser == "adamw_8bit" and weight.numel() >= MIN_QUANTISED:
        return 2 * (weight.numel() + 4 * math.ceil(weight.numel() / MOMENTS_A_SCALE))
    return 2 * 4 * weight.numel()


def _bytes(module: nn.Module) -> int:
    """The bytes of weights, quantised ones included, which are buffers."""
    quantised = [each.weight.nbytes for each in module.modules() if isinstance(each, QuantisedLinear)]
    return sum(weight.nbytes for weight in module.parameters()) + sum(quantised)


def faked(model: nn.Module) -> nn.Module:
    """Put fake tensors of the CPU in the place of a model's meta tensors, so that it runs; weights stay tied."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), dict[int, Tensor]()
    originals: list[Tensor] = []  # alive, so that no id is given twice

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_like(tensor, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_weight else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    originals.append(tensor)
                    tensors[name] = fake(tensor)  # type: ignore[assignment]
    text = unwrapped(model).config.get_text_config()
    assume_plain_head(model, not any(getattr(text, name, None) for name in LOGITS_CHANGED))
    return model
