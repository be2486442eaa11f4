"""A policy's weights as a model folder that vLLM reads: adapters merged, in the dtype that the server computes in."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError, system_error
from tasks.learning.models.forward import compute_dtype, unwrapped
from tasks.learning.models.precision import is_plain

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


@torch.no_grad()
def write_weights(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model, in the precision that it computes in, and its tokenizer; the model stays as it is.

    They take the place of what lies in `folder`, which others on the machine cannot read: it lies where all may write.

    Raises:
        InputError: there is no room, or no permission.
    """
    inner, dtype = unwrapped(model), compute_dtype(model)
    # Away first: the memory would not hold both, and a file that a server has mapped must not change under it.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700, parents=True)
        weights = {name: weight.to(dtype).contiguous() for name, weight in _merged_weights(inner)}
        _without_weights(inner, dtype).save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    except Exception as error:
        hidden = system_error(error)
        if hidden is None:
            raise
        raise InputError(
            f"the policy's weights cannot be written to {folder} ({hidden.strerror}): "
            "set runtime.vllm.weights_folder to a folder with room for them"
        ) from error


def _merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights on the CPU by the names that they have without adapters; one with two names once."""
    seen: set[int] = set()
    adapted = "no module"
    for name, module in model.named_modules():
        if name.startswith(f"{adapted}."):
            continue
        layer, delta = module, torch.zeros(())
        if _has_adapters(module):
            adapted, layer, delta = name, module.get_base_layer(), _delta(module)
        for key, weight in _own_weights(layer).items():
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            if key == "weight" and layer is not module:
                yield f"{name}.{key}", _plain(layer, weight).float() + delta
            else:
                yield f"{name}.{key}".lstrip("."), _plain(layer, weight)


def _plain(layer: nn.Module, weight: Tensor) -> Tensor:
    """Give a weight of a layer on the CPU, not quantised."""
    if is_plain(weight) or not isinstance(weight, nn.Parameter):
        return weight.cpu()
    from peft.utils.integrations import dequantize_module_weight

    found: Tensor = dequantize_module_weight(layer).cpu()
    return found


def _own_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers that are saved, of a module alone."""
    buffers = {
        name: buffer
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }
    return {name: weight for name, weight in module._parameters.items() if weight is not None} | buffers


def _has_adapters(module: nn.Module) -> "TypeGuard[BaseTunerLayer]":
    """Whether adapters stand around a layer; where nobody has imported peft there are none."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)


def _delta(layer: Any) -> Tensor:  # noqa: ANN401
    """What the active adapters add to the weight of their layer, in fp32."""
    return torch.stack([layer.get_delta_weight(name).float().cpu() for name in layer.active_adapters]).sum(dim=0)


def _without_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Give a model of the same kind without weights: one with adapters would write other names beside its config."""
    config = type(model.config).from_dict(model.config.to_dict())
    with torch.device("meta"):
        found = type(model)(config)
    nn.Module.to(found, dtype)  # which its config.json then names
    return found
