"""Attention within packed rows in one call, on a GPU in half precision: torch's variable-length attention.

Where it cannot serve (a CPU, fp32, heads of other widths) `attention.attend` loops over the sequences.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from tasks.learning.batches import Trees

# What torch's flash attention takes (flash_api.cpp).
PRECISIONS = (torch.bfloat16, torch.float16)
WIDEST_HEAD, HEAD_STEP = 256, 8
AMPERE = (8, 0)


class Segments(NamedTuple):
    """The n sequences of a packed row of T tokens, each of queries and of the S keys that they may see."""

    query_bounds: Tensor  # (n + 1,) int32: 0, and where the queries of each end among the T
    key_bounds: Tensor  # (n + 1,) int32: 0, and where the keys of each end among the S
    keys: Tensor | None  # (S,) long: where each key lies among the T; None: keys are the queries' tokens
    most_queries: int
    most_keys: int


@lru_cache(maxsize=2)  # all layers of a pass ask for the same
@torch.inference_mode(mode=False)  # so that what sampling makes serves training too
def segments(trees: Trees, device: torch.device) -> Segments:
    """Cut a packed row: a prompt with its first completion, and each further completion behind the prompt's keys."""
    query_bounds, key_bounds, keys = [0], [0], list[int]()
    for start, prompt_end, *ends in trees.bounds:
        for begin, end in pairwise([start, *ends]):
            prompt = range(start, prompt_end) if begin > start else ()
            keys += [*prompt, *range(begin, end)]
            query_bounds.append(end)
            key_bounds.append(len(keys))
    has_branches = key_bounds != query_bounds
    return Segments(
        torch.tensor(query_bounds, dtype=torch.int32, device=device),
        torch.tensor(key_bounds, dtype=torch.int32, device=device),
        torch.tensor(keys, device=device) if has_branches else None,
        *(max(end - begin for begin, end in pairwise(bounds)) for bounds in (query_bounds, key_bounds)),
    )


def varlen_precision(query: Tensor) -> torch.dtype | None:
    """The precision in which the queries (1, H, T, D) can be attended from in one call, or None: they cannot."""
    device, width = query.device, query.shape[-1]
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < AMPERE:
        return None
    precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    return precision if precision in PRECISIONS and width <= WIDEST_HEAD and width % HEAD_STEP == 0 else None


def attend_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    trees: Trees,
    precision: torch.dtype,
    *,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend within each sequence of a packed row; (1, T, H, D). The arguments are those of `attention.attend`.

    A causal mask of fewer queries than keys is aligned to the last of both (FlashAttention from 2.1 on), which is what
    a completion behind its prompt's keys needs.
    """
    found = segments(trees, query.device)
    query, key, value = (each[0].transpose(0, 1).to(precision) for each in (query, key, value))
    if found.keys is not None:
        key, value = key.index_select(0, found.keys), value.index_select(0, found.keys)
    output = varlen_attn(
        query,
        key,
        value,
        found.query_bounds,
        found.key_bounds,
        found.most_queries,
        found.most_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)  # a pair only where more is asked for
    return output[None]
