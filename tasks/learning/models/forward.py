"""Rows through a model: packed where the model reads them so exactly, else padded."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.data.base_model.soundness import FAR
from tasks.data.encoding.context import usable_context
from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import Batch, collate, positions
from tasks.learning.models.attention import PACKED

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)
_heads: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a model's head alone makes its logits
# Where models compute whose weights lie elsewhere between their passes.
_compute_devices: WeakKeyDictionary[nn.Module, torch.device] = WeakKeyDictionary()

# Rows on which a model shows whether it may read them packed; every vocabulary has these ids.
PROBES = [Encoded([2, 3, 4, 5], [6, 7, 8]), Encoded([9, 8], [7, 6, 5, 4, 3]), Encoded([2, 3, 4, 5], [3, 9, 2, 5, 7])]
MOVED = 1  # the probe that is read at the end of the context too; it shares nothing with the others
BODY = "read_by_body"  # of a sharded model: its body, which gathers the weights first
COMPUTE_DTYPE = "trueline_compute_dtype"  # of a model whose matrix products are not in fp32
LARGEST_PACKING_ERROR = 1e-3  # of the largest hidden state: rounding is a thousand times smaller, a leak larger


def last_states(model: nn.Module, batch: Batch, wanted: Tensor) -> Tensor:
    """Last hidden states (N, d) at the N True places of `wanted` (B, L), row after row."""
    inner = unwrapped(model)
    body = getattr(inner, BODY, inner.base_model)
    states: Tensor
    with computing(model):
        if is_packed(model):
            places = batch.packing.places[wanted]  # before the pass: a GPU would be waited for
            states = body(**_packed_inputs(batch)).last_hidden_state[0][places]
        else:
            states = body(**_padded_inputs(batch)).last_hidden_state[wanted]
    return states


def completion_logits(policy: nn.Module, batch: Batch) -> Tensor:
    """Logits (N, V) that score the N completion tokens of a batch, row after row."""
    wanted = predicting(batch)
    logits: Tensor
    with computing(policy):
        if is_packed(policy):
            places = batch.packing.places[wanted]
            logits = policy(**_packed_inputs(batch), logits_to_keep=places).logits[0]
        else:
            columns = wanted.any(dim=0).nonzero()[:, 0]
            logits = policy(**_padded_inputs(batch), logits_to_keep=columns).logits[wanted[:, columns]]
    return logits


def predicting(batch: Batch) -> Tensor:
    """The places before the completion's tokens, (B, L) bool: the output at t - 1 predicts token t."""
    return functional.pad(batch.completion_mask[:, 1:], (0, 1))


def plain_head(policy: nn.Module) -> nn.Module | None:
    """Give the layer that makes the logits of the last states, if it alone does: some families scale or cap them after.

    Tried out at the first call on the rows that showed whether the model may be packed.
    """
    inner = unwrapped(policy)
    head = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
    if inner not in _heads:
        _heads[inner] = _makes_logits(head, policy)
    return head if _heads[inner] else None


def assume_plain_head(policy: nn.Module, makes_logits: bool) -> None:
    """Say whether a model's head alone makes its logits, of a model without data, which cannot be tried out."""
    _heads[unwrapped(policy)] = makes_logits


@torch.no_grad()
def _makes_logits(head: nn.Module, policy: nn.Module) -> bool:
    batch = collate(PROBES, compute_device(policy))
    expected, states = completion_logits(policy, batch), last_states(policy, batch, predicting(batch))
    with computing(policy):
        found = head(states)
    return torch.allclose(found, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


def is_packed(model: nn.Module) -> bool:
    """Say whether the model reads its rows packed."""
    return bool(unwrapped(model).config._attn_implementation == PACKED)


@torch.no_grad()
def pack_if_exact(model: PreTrainedModel) -> None:
    """Let the model read packed rows from now on if its outputs are those for padded rows; else log why not.

    Tried out on a few short rows, two of which share their prompt, because no list of families would stay true: a
    family may mix tokens in other ways than by attention, or attend as `attend` cannot. They are read once more with
    one of them at the end of the context, for a family may place all tokens by the last position that it meets.
    """
    batch = collate(PROBES, compute_device(model))
    every = batch.attention_mask
    others = every & (torch.arange(len(PROBES), device=compute_device(model)) != MOVED)[:, None]
    padded, before = last_states(model, batch, every), model.config._attn_implementation
    try:
        if getattr(model.config.get_text_config(), "attention_chunk_size", None):
            raise NotImplementedError("attention in chunks")  # of thousands of tokens, so short rows would not show it
        model.set_attn_implementation(PACKED)
        beside = last_states(model, _with_far_row(batch, usable_context(model.config)), others)
        changes = last_states(model, batch, every) - padded, beside - padded[others[every]]
        largest = max(change.abs().max().item() for change in changes)
        if largest <= LARGEST_PACKING_ERROR * padded.abs().max().item():
            return
        reason = f"hidden states would differ by {largest:.2g}"
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
    model.set_attn_implementation(before)
    logger.warning("%s: rows are padded, not packed, which is slower (%s)", model.config.model_type, reason)


def _with_far_row(batch: Batch, context: int | None) -> Batch:
    """Put one packed row where the model's context ends, as if it were the end of a long row."""
    row = batch.rows[MOVED]
    positions_in_rows = batch.packing.position_ids.clone()
    shift = max(FAR if context is None else context, row.length) - row.length
    positions_in_rows[0, batch.packing.places[MOVED, : row.length]] += shift
    return batch._replace(packing=batch.packing._replace(position_ids=positions_in_rows))


def _padded_inputs(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": positions(batch.attention_mask),
        "use_cache": False,
    }


def _packed_inputs(batch: Batch) -> dict[str, Any]:
    packing = batch.packing
    return {
        "input_ids": packing.input_ids,
        "position_ids": packing.position_ids,
        # A mask of four dimensions is handed through as it is: without one transformers would make one, (T, T) large.
        "attention_mask": packing.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool),
        "use_cache": False,
        "trees": packing.trees,
    }


def recompute_layers(model: nn.Module) -> None:
    """Put layers that compute activations again into training mode, in which alone they do; not the dropout in them."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = module.gradient_checkpointing


@contextmanager
def layers_as_written(model: nn.Module) -> Iterator[None]:
    """Have layers compute as usual inside the block: those that compute activations again use no cache.

    Nor are they compiled there: with a cache that grows by a token, each pass would be another program.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        recompute_layers(model)


def has_adapters(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether a model carries adapters; where none does nobody has imported peft, and nobody has to."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """Look beneath the adapters: the transformers model that carries them."""
    inner = model.get_base_model() if has_adapters(model) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def computing(model: nn.Module) -> torch.autocast:
    """Give the block in which a model computes its matrix products in its own precision, by torch's autocast.

    Every forward pass has its own: no caller needs to know the precision.
    """
    dtype = compute_dtype(model)
    is_cast = dtype == torch.bfloat16
    # A pass needs each weight once, so to cache casts would only hold a copy of all that are trained to its end.
    return torch.autocast(compute_device(model).type, torch.bfloat16, enabled=is_cast, cache_enabled=False)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Give the precision of a model's matrix products: fp32, or bf16 where it was set so."""
    dtype: torch.dtype = getattr(unwrapped(model), COMPUTE_DTYPE, torch.float32)
    return dtype


def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Record the precision of a model's matrix products; copies of the model have it too."""
    setattr(unwrapped(model), COMPUTE_DTYPE, dtype)


def compute_device(model: nn.Module) -> torch.device:
    """Give the device that a model computes on, where its batches belong; its weights may lie elsewhere (sharding)."""
    inner = unwrapped(model)
    return _compute_devices.get(inner, inner.device)


def set_compute_device(model: nn.Module, device: torch.device) -> None:
    """Record the device that a model goes on to compute on when its weights are about to lie elsewhere."""
    _compute_devices[unwrapped(model)] = device
