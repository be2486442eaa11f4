"""Saving models: adapters merged in, in the dtype that the settings name, and what rounding to it costs."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.files import replacing
from tasks.common.full_disk import writing
from tasks.data.base_model.mismatches import load_with_mismatches
from tasks.data.base_model.weights import tensors_of
from tasks.learning.models.forward import has_adapters, unwrapped
from tasks.learning.models.merging import ADAPTER, SavedUpdate, merge_into, merged, save_adapter
from tasks.learning.models.precision import SCALAR_HEAD
from tasks.settings.choices import OutputDtype

OUTPUT_DTYPE = "trueline_output_dtype"  # of a model that is trained
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors call them; all others are saved in fp32


class Rounding(NamedTuple):
    """What saving cost; None where it cost nothing."""

    merge_error: float | None = None  # see `merge_into`
    update_saved: float | None = None  # see `SavedUpdate.share`


def save_in(model: PreTrainedModel, dtype: OutputDtype) -> None:
    """Record the dtype that a model is saved in once it is trained; that of its folder where `dtype` says base."""
    match dtype:
        case "base":
            found = stored_dtype(Path(str(model.name_or_path)))
        case "bf16":
            found = torch.bfloat16
        case "fp32":
            found = torch.float32
    setattr(model, OUTPUT_DTYPE, found)


def member_folder(folder: Path, number: int) -> Path:
    """Where a member of an ensemble after the first lies, by its number from 2."""
    return folder / f"member-{number}"


def save_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, others: Sequence[nn.Module] = ()
) -> Rounding:
    """Write full weights (adapters merged in) as safetensors, with the tokenizer, whole or not at all.

    `others` are the further members of an ensemble.

    Returns:
        What that cost, of the model that it cost most.
    """
    with replacing(folder) as draft, writing(folder):
        costs = [_save(model, draft)]
        tokenizer.save_pretrained(draft)
        for number, member in enumerate(others, start=2):
            costs.append(_save(member, member_folder(draft, number)))
    return Rounding(
        max((each.merge_error for each in costs if each.merge_error is not None), default=None),
        min((each.update_saved for each in costs if each.update_saved is not None), default=None),
    )


def _save(model: nn.Module, folder: Path) -> Rounding:
    """Save a model; where memory holds its base in less than fp32, with the weights of the base's own folder."""
    inner, error = unwrapped(model), None
    dtype: torch.dtype = getattr(inner, OUTPUT_DTYPE, torch.float32)
    full, update = merged(model), SavedUpdate()
    if has_adapters(full):
        base = _as_loaded(inner)
        error, full = merge_into(base, full, dtype, update), base
        for name, weight in full.named_parameters():  # those that have no adapter
            if SCALAR_HEAD not in name.split("."):
                weight.data = weight.data.to(dtype)
    elif dtype != torch.float32:
        base = _as_loaded(inner)
        for name, weight in full.named_parameters():
            if SCALAR_HEAD not in name.split("."):
                weight.data = update.rounded(base.get_parameter(name).to(weight.device), weight.data, dtype)
    else:
        full.float()  # of weights that were trained in bf16
    assert isinstance(full, PreTrainedModel)
    full.save_pretrained(folder)
    if error is not None and hasattr(full, SCALAR_HEAD):
        assert has_adapters(model)
        save_adapter(model, folder / ADAPTER)
    return Rounding(error, update.share if dtype != torch.float32 else None)


def _as_loaded(model: PreTrainedModel) -> PreTrainedModel:
    """Load the weights that a model was trained from once more, on the CPU; its scalar head may be in none of them."""
    folder, config = Path(str(model.name_or_path)), copy.deepcopy(model.config)
    loaded, _ = load_with_mismatches(type(model), folder, config=config, dtype=stored_dtype(folder))
    assert isinstance(loaded, PreTrainedModel)
    return loaded


def stored_dtype(folder: Path) -> torch.dtype:
    """Give the dtype of all weights of a folder but a scalar head, which is in fp32 whatever they are; else fp32."""
    stored = {
        tensor.dtype for tensor in tensors_of(folder, str(folder)) if not tensor.name.startswith(f"{SCALAR_HEAD}.")
    }
    return DTYPES.get(next(iter(stored)), torch.float32) if len(stored) == 1 else torch.float32
