"""Weights in the precision that a model computes in: those of its frozen linear layers.

Under autocast a linear layer rounds its weights to bf16 in every pass. Weights that lie there rounded give the same
bits, take half the memory, and are not rounded anew. Embeddings, norms and scalar heads compute in fp32: they stay.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.learning.models.forward import compute_dtype, unwrapped
from tasks.settings.choices import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
LINEAR = (nn.Linear, Conv1D)  # transformers' Conv1D is a linear layer whose weight is transposed
SCALAR_HEAD = "score"


def round_frozen(model: nn.Module) -> None:
    """Let the frozen linear layers of a model lie in the precision that it computes in.

    A head that is tied to the embeddings stays with them.
    """
    for layer in untied_layers(unwrapped(model)):
        if not layer.weight.requires_grad:
            round_layer(layer, compute_dtype(model))


@contextmanager
def exactly(model: nn.Module) -> Iterator[None]:
    """Have linear layers that lie in fewer bits compute in fp32 inside the block: one at a time is widened."""
    hooks: list[RemovableHandle] = []
    for layer in linear_layers(model):
        narrow = dict(layer.named_parameters(recurse=False))
        if any(weight.dtype != torch.float32 for weight in narrow.values()):
            hooks.append(layer.register_forward_pre_hook(lambda layer, _: round_layer(layer, torch.float32)))
            hooks.append(layer.register_forward_hook(partial(_give_back, narrow)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _give_back(weights: dict[str, nn.Parameter], layer: nn.Module, *_: object) -> None:
    for name, weight in weights.items():
        setattr(layer, name, weight)


def untied_layers(model: PreTrainedModel) -> Iterator[nn.Linear | Conv1D]:
    """Yield the linear layers whose weights are not those of the embeddings."""
    embeddings = model.get_input_embeddings().weight
    return (layer for layer in linear_layers(model) if layer.weight is not embeddings)


def round_trained(model: nn.Module) -> None:
    """Let the linear layers that are to be trained lie in the precision that the model computes in.

    As in `round_frozen`, a head that is tied to the embeddings stays with them; so do biases, which are small.
    """
    for layer in untied_layers(unwrapped(model)):
        if layer.weight.requires_grad:
            layer.weight = nn.Parameter(layer.weight.detach().to(compute_dtype(model)))


def round_layer(layer: nn.Module, dtype: torch.dtype) -> None:
    """Give a layer weights of its own in a precision, without gradients, where it has them in another."""
    for name, weight in list(layer.named_parameters(recurse=False)):
        if weight.dtype != dtype:
            setattr(layer, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))


def linear_layers(model: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    """Yield the layers whose products autocast rounds: neither the scalar head nor quantised ones."""
    for name, layer in model.named_modules():
        if isinstance(layer, LINEAR) and SCALAR_HEAD not in name.split(".") and is_plain(layer.weight):
            yield layer


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is not quantised."""
    return type(weight) is nn.Parameter and weight.is_floating_point()
