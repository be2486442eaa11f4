"""Attention within packed rows: many sequences lie in one long row, and none sees another.

Everything but attention works token by token, so a packed row costs what its tokens cost and padding costs nothing.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tasks.learning.batches import Trees
from tasks.learning.models.varlen import attend_at_once, varlen_precision

PACKED = "packed"  # the name by which transformers calls `attend`
# What some families ask of attention beyond a window: `attend` knows none of it, and says so.
UNKNOWN = ("softcap", "s_aux", "position_bias")


class CacheView(NamedTuple):
    """What attention needs to know of a cache that reads one more token of each sequence."""

    lengths: Tensor  # (B,) tokens before the one that is read
    blocks: list[tuple[int, int, int]]  # of neighbouring sequences: first, behind the last, tokens of the longest


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    trees: Trees | None = None,
    cache_view: CacheView | None = None,
    sliding_window: int | None = None,
    **others: Any,  # noqa: ANN401  what a family asks for besides: of any type
) -> tuple[Tensor, None]:
    """Attend within each sequence of a packed row, or over a RaggedCache; else as torch does under the mask.

    Args:
        module: the attention layer.
        query: (B, H, T, D); B is 1 in a packed row, T is 1 over a RaggedCache.
        key: (B, K, S, D), of K heads, each shared by H / K of the queries'.
        value: (B, K, S, D).
        attention_mask: not looked at in a packed row.
        scaling: of the products of queries and keys.
        trees: `Packing.trees` of a packed row.
        cache_view: of the RaggedCache.
        sliding_window: a token sees itself and so many minus one before it.
        others: what a family asks for besides.

    Returns:
        (B, T, H, D), and no attention weights.

    Raises:
        NotImplementedError: the family asks for what is not known here.
    """
    if cache_view is not None:
        return _from_cache(
            module, query, key, value, cache_view, scaling=scaling, window=sliding_window, **others
        ), None
    if trees is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **others
        )
    if unknown := [name for name in UNKNOWN if others.get(name) is not None]:
        raise NotImplementedError(f"attention with {unknown[0]}")
    if (precision := varlen_precision(query)) is not None:
        return attend_at_once(query, key, value, trees, precision, scaling=scaling, window=sliding_window), None
    shared = query.shape[1] // key.shape[1]
    # Split, not sliced one by one: the gradient of a slice is as large as the tensor it is a part of.
    lengths = [end - begin for start, _, *ends in trees.bounds for begin, end in pairwise([start, *ends])]
    full = (query, repeat_kv(key, shared), repeat_kv(value, shared))
    parts = zip(*(torch.split(each, lengths, dim=2) for each in full), strict=True)
    outputs = []
    for start, prompt_end, *ends in trees.bounds:
        queries, keys, values = next(parts)
        outputs.append(_causal(queries, keys, values, scaling, sliding_window))
        prompt = slice(prompt_end - start)
        for _ in ends[1:]:
            branch, own_keys, own_values = next(parts)
            seen_keys = torch.cat([keys[:, :, prompt], own_keys], dim=2)
            seen_values = torch.cat([values[:, :, prompt], own_values], dim=2)
            outputs.append(_causal(branch, seen_keys, seen_values, scaling, sliding_window))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _from_cache(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache_view: CacheView,
    *,
    scaling: float | None,
    window: int | None,
    **others: Any,  # noqa: ANN401
) -> Tensor:
    """Attend from one token a sequence to its keys and values in the cache; (B, 1, H, D).

    Block by block, each no wider than its longest sequence: reading keys and values is what this costs.
    """
    place = torch.arange(key.shape[2], device=key.device)
    seen = place <= cache_view.lengths[:, None]
    if window is not None:
        seen &= place > cache_view.lengths[:, None] - window
    outputs = []
    for first, behind, width in cache_view.blocks:
        block, mask = slice(first, behind), seen[first:behind, None, None, :width]
        keys, values = key[block, :, :width], value[block, :, :width]
        output, _ = sdpa_attention_forward(module, query[block], keys, values, mask, scaling=scaling, **others)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """Attend to oneself and what came before; the queries are those of the last of the tokens that have keys."""
    count, length = query.shape[2], key.shape[2]
    if count == length and (window is None or length <= window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    place = torch.arange(length, device=query.device)
    distance = place[length - count :, None] - place
    seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
