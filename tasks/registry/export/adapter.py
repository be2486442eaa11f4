"""Extracting a LoRA adapter from the weights of a model that was aligned with adapters.

Trainers merge their adapters when they save (docs/decisions/0006-adapters-are-merged.md). The difference between the
aligned model and the SFT model has the adapter's rank, so its singular vectors give the adapter back.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tasks.common.errors import InputError
from tasks.data.base_model.mismatches import load_with_mismatches, refuse_mismatches

# Rounding errors of merging and extracting, in units in the last place of the largest weight.
ROUNDING = 8
OVERSAMPLING, POWER_ITERATIONS = 8, 4


class Factors(NamedTuple):
    """A matrix of low rank: b @ a, with a of shape (rank, columns) and b of shape (rows, rank)."""

    a: Tensor
    b: Tensor


def write_adapter(merged: Path, base: Path, folder: Path, *, rank: int, alpha: float, targets: str | list[str]) -> None:
    """Write the adapter that turns one model into another, as adapter_config.json and adapter_model.safetensors.

    Args:
        merged: folder of the aligned model.
        base: folder of the model it was aligned from.
        folder: the output folder.
        rank: rank of the trained adapters, at least 1.
        alpha: scale of the adapters times their rank.
        targets: the layers that had one, as in params.yaml.

    Raises:
        InputError: the models differ by more than an adapter of this rank can represent.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    aligned = _load(merged)
    scale: Any = alpha  # peft annotates an int and only divides by the rank
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=scale, target_modules=targets)
    with warnings.catch_warnings():
        # GPT-2 stores its weights transposed; peft handles that and warns.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        adapted = get_peft_model(_load(base), config)
    weights = dict(aligned.named_parameters())
    for name, layer in adapted.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            _set_factors(layer, weights.pop(f"{name}.weight"))
    for name, weight in adapted.get_base_model().named_parameters():
        same = name.replace(".base_layer.", ".")
        if same in weights and not torch.equal(weight, weights[same]):
            raise _too_different(same, rank)
    found: Any = adapted.peft_config["default"]
    found.base_model_name_or_path = None
    found.target_modules = sorted(found.target_modules)  # peft has a set, whose order changes from run to run
    adapted.save_pretrained(str(folder), save_embedding_layers=False)


def factors(difference: Tensor, rank: int) -> Factors:
    """Factor a matrix by its largest singular values.

    Args:
        difference: (rows, columns).
        rank: number of singular values; those beyond the matrix's own rank are zero.

    Source: Halko et al. 2011, "Finding structure with randomness", algorithm 5.1 with power iterations.
    """
    rows, columns = difference.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same models give the same bytes
        size = min(rank + OVERSAMPLING, rows, columns)
        left, values, right = torch.svd_lowrank(difference, q=size, niter=POWER_ITERATIONS)
    count = min(rank, size)
    roots = values[:count].sqrt()
    a, b = difference.new_zeros(rank, columns), difference.new_zeros(rows, rank)
    a[:count], b[:, :count] = roots[:, None] * right[:, :count].T, left[:, :count] * roots
    return Factors(a, b)


def _set_factors(layer: Any, aligned: Tensor) -> None:  # noqa: ANN401 (peft has no types)
    """Set the adapter of a layer so that the layer computes what the aligned one computes."""
    weight = layer.get_base_layer().weight
    difference = (aligned.double() - weight.double()).detach()
    difference = difference.T if layer.fan_in_fan_out else difference
    rank, scaling = layer.r["default"], layer.scaling["default"]
    found = factors(difference, rank)
    error = (difference - found.b @ found.a).abs().max().item()
    if error > ROUNDING * torch.finfo(weight.dtype).eps * max(weight.abs().max().item(), aligned.abs().max().item()):
        raise _too_different("a layer with an adapter", rank)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(found.a)
        layer.lora_B["default"].weight.copy_(found.b / scaling)


def _too_different(what: str, rank: int) -> InputError:
    return InputError(
        f"{what} differs from the SFT model by more than an adapter of rank {rank} can represent: "
        "export the whole model, without --adapter"
    )


def _load(folder: Path) -> PreTrainedModel:
    model, mismatches = load_with_mismatches(AutoModelForCausalLM, folder, dtype=torch.float32)
    refuse_mismatches(mismatches, str(folder))
    assert isinstance(model, PreTrainedModel)
    return model.requires_grad_(False)
