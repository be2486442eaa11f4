"""Weights in the precision that a model computes in: those of its frozen linear layers.

Under autocast a linear layer rounds its weights to bf16 in every pass. Weights that lie there rounded give the same
bits, take half the memory, and are not rounded anew. Embeddings, norms and scalar heads compute in fp32: they stay.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tasks.learning.models.forward import compute_dtype, unwrapped
from tasks.settings.choices import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
LINEAR = (nn.Linear, Conv1D)  # transformers' Conv1D is a linear layer whose weight is transposed
SCALAR_HEAD = "score"


def round_frozen(model: nn.Module) -> None:
    """Let the frozen linear layers of a model lie in the precision that it computes in.

    A head that is tied to the embeddings stays with them.
    """
    inner, dtype = unwrapped(model), compute_dtype(model)
    embeddings = inner.get_input_embeddings().weight
    for layer in linear_layers(inner):
        if not layer.weight.requires_grad and layer.weight is not embeddings:
            round_layer(layer, dtype)


def round_trained(model: nn.Module) -> None:
    """Let the linear layers that are to be trained lie in the precision that the model computes in.

    As in `round_frozen`, a head that is tied to the embeddings stays with them; so do biases, which are small.
    """
    inner, dtype = unwrapped(model), compute_dtype(model)
    embeddings = inner.get_input_embeddings().weight
    for layer in linear_layers(inner):
        if layer.weight.requires_grad and layer.weight is not embeddings:
            layer.weight = nn.Parameter(layer.weight.detach().to(dtype))


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
