"""What training takes for granted of a model, tried on a few tokens: its numbers are finite, and rows stand alone."""

from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError

if TYPE_CHECKING:  # torch costs seconds to import: only the functions that need it pay
    from torch import Tensor
    from transformers import PreTrainedModel

SHARED, BEHIND, OTHER = [2, 3, 4, 5], [6, 7, 8], [3, 9, 5]  # a beginning, and two ways on
FAR = 4096  # tokens, where positions have no end
# Of the largest state: rounding is a thousand times smaller in 32 bits, and a leak far larger in 16.
LARGEST_CHANGE, LARGEST_CHANGE_IN_16_BITS = 1e-3, 5e-2


def check_sound(model: "PreTrainedModel", context: int | None, name: str) -> None:
    """Refuse a model whose states depend on what comes later, or on how long the row beside is.

    Args:
        model: with or without a head.
        context: tokens it reads at most (None: any number).
        name: how it is called in errors.

    Raises:
        InputError: a state is not finite, or changes.
    """
    import torch

    embedding: Any = model.get_input_embeddings()
    vocabulary = len(embedding.weight)
    one, other = (torch.tensor([[token % vocabulary for token in SHARED + end]]) for end in (BEHIND, OTHER))
    length = one.shape[1] if context is None else min(one.shape[1], context)
    one, other = one[:, :length], other[:, :length]
    near = torch.arange(length)[None]
    far = near + (FAR if context is None else context) - length
    with torch.no_grad():
        alone = _states(model, one, near)
        continued = _states(model, other, near)
        beside = _states(model, torch.cat([one, other]), torch.cat([near, far]))[:1]
    if not alone.isfinite().all():
        raise InputError(f"{name}: the model's states are not finite: fix its config.json, or take another model")
    most = (LARGEST_CHANGE if alone.dtype.itemsize > 2 else LARGEST_CHANGE_IN_16_BITS) * alone.abs().max().item()
    if (change := _change(alone[:, : len(SHARED)], continued[:, : len(SHARED)])) > most:
        raise InputError(
            f"{name}: tokens see those behind them (states change by {change:.2g}), so it is no causal language model:"
            " choose one that is"
        )
    if (change := _change(alone, beside)) > most:
        raise InputError(
            f"{name}: a row's states change by {change:.2g} beside a longer row, so training and sampling would not"
            " agree: choose a model whose positions do not depend on the longest row"
        )


def _states(model: "PreTrainedModel", input_ids: "Tensor", position_ids: "Tensor") -> "Tensor":
    """Last hidden states (B, L, d) of rows without padding; both arguments (B, L)."""
    import torch

    device = model.device
    inputs: dict[str, Any] = {
        "input_ids": input_ids.to(device),
        "attention_mask": torch.ones_like(input_ids, dtype=torch.bool, device=device),
        "position_ids": position_ids.to(device),
        "use_cache": False,
    }
    states: Tensor = model.base_model(**inputs).last_hidden_state
    return states


def _change(one: "Tensor", other: "Tensor") -> float:
    return (one - other).abs().max().item()
