"""Adapters onto the weights of the folder that their base came from, where memory holds those in fewer bits.

What is saved is then not quite what was trained: the base is finer. The error is that of the base in memory.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.learning.models.forward import has_adapters
from tasks.learning.models.quantised import QuantisedLinear, quantised_in

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "adapter/weights.safetensors"  # of a reward model, within its folder
SCALING = "scaling"


def is_coarse(model: nn.Module) -> bool:
    """Whether memory holds some weights in less than fp32."""
    return quantised_in(model) is not None or any(weight.dtype != torch.float32 for weight in model.parameters())


def merged(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights for good; a model without any is given back as it is.

    So is one whose base memory holds in less than fp32: there they would be rounded. `save_model` adds them to the
    weights of the base's folder.
    """
    return model.merge_and_unload() if has_adapters(model) and not is_coarse(model) else model


class SavedUpdate:
    """How much of what training added to the weights is left once they are rounded to the dtype they are saved in."""

    def __init__(self) -> None:
        """Begin without weights."""
        self._kept = self._whole = 0.0

    def rounded(self, before: Tensor, trained: Tensor, dtype: torch.dtype) -> Tensor:
        """Round the fp32 values of a weight, which was `before` when training began."""
        saved, update = trained.to(dtype), trained - before.float()
        self._kept += ((saved.float() - before.float()) * update).sum().item()
        self._whole += update.square().sum().item()
        return saved

    @property
    def share(self) -> float:
        """The part of the saved update along the trained one: 1 where rounding costs nothing, 0 where all is lost."""
        return self._kept / self._whole if self._whole else 1.0


@torch.no_grad()
def merge_into(base: PreTrainedModel, trained: "PeftModel", dtype: torch.dtype, update: SavedUpdate) -> float:
    """Add the active adapters of a model to the weights of another, its base in full precision, in place.

    Sums are in fp32, one weight after the other, and each is rounded to `dtype`. Parts that were trained whole, such as
    a scalar head, are copied in theirs.

    Returns:
        |saved - trained| / |trained| over all weights that memory holds in less than fp32, Frobenius norms: `trained`
        is what the model computed with, the adapters included.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    squared_error, squared_norm = 0.0, 0.0
    for name, module in _outermost(trained.get_base_model()):
        target = base.get_submodule(name)
        if isinstance(module, ModulesToSaveWrapper):
            (active,) = module.active_adapters
            target.load_state_dict(module.modules_to_save[active].cpu().state_dict(), assign=True)
            continue
        weight, delta = target.get_parameter("weight"), torch.zeros(())
        if isinstance(module, BaseTunerLayer):
            delta = _delta(module)
            weight.data = update.rounded(weight, weight.float() + delta, dtype)
            module = module.get_base_layer()  # noqa: PLW2901
        if is_coarse(module):
            computed_with = _computed_with(module) + delta
            squared_error += (weight.float() - computed_with).square().sum().item()
            squared_norm += computed_with.square().sum().item()
    return math.sqrt(squared_error / squared_norm)


def _delta(layer: Any) -> Tensor:  # noqa: ANN401
    """What the active adapters add to a layer's weight, fp32 on the CPU."""
    return torch.stack([layer.get_delta_weight(name).float().cpu() for name in layer.active_adapters]).sum(dim=0)


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with adapters, those trained whole and those with a weight of their own, not what lies within them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    found = ""
    for name, module in model.named_modules():
        if found and name.startswith(f"{found}."):
            continue
        if (
            isinstance(module, BaseTunerLayer | ModulesToSaveWrapper | QuantisedLinear)
            or "weight" in module._parameters
        ):
            found = name
            yield name, module


def _computed_with(layer: nn.Module) -> Tensor:
    """The weight of a layer, fp32 on the CPU."""
    weight = layer.dequantised(torch.float32) if isinstance(layer, QuantisedLinear) else layer.get_parameter("weight")
    return weight.float().cpu()


def save_adapter(model: "PeftModel", file: Path) -> None:
    """Write the low-rank factors A (r, in) and B (out, r) by the names of their layers, if all are linear layers'.

    Not in peft's format, whose config lists the layers in another order each time.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner, tensors, scaling = model.get_base_model(), {}, 0.0
    layers: list[tuple[str, Any]] = [
        (name, each) for name, each in inner.named_modules() if isinstance(each, BaseTunerLayer)
    ]
    for name, layer in layers:
        if not isinstance(layer.get_base_layer(), nn.Linear):
            return
        (active,) = layer.active_adapters
        scaling = layer.scaling[active]
        for part, of_all in (("A", layer.lora_A), ("B", layer.lora_B)):
            tensors[f"{name}.{part}"] = of_all[active].weight.detach().cpu().contiguous()
    file.parent.mkdir()
    save_file(tensors, file, metadata={SCALING: str(scaling)})
