"""Sampling responses from a policy: one loop over the model's own forward and cache, for every causal family.

Sampling is plain: the temperature and nothing else. A model's generation_config (top-k, repetition penalty, ...) is
left out of account, but for its stop tokens, because PPO needs the log-probability of the distribution it sampled from.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.errors import InputError
from tasks.learning.batches import positions
from tasks.learning.models import context_length, unwrapped

# Finished rows leave the batch when no more than this share of it goes on: dropping them copies the cache.
COMPACT_AT = 0.75
# Probabilities are laid out on this many steps: integers add up alike in any order, on any device.
RESOLUTION = 2**40


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the ids that end a response: the tokenizer's end-of-sequence token and those of the generation config."""
    config = unwrapped(model).generation_config
    configured = config.eos_token_id if config is not None else None
    others = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *others} - {None})


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Answer prompts by sampling, a pure function of its arguments.

    Every prompt has its own random numbers, by its place in `prompts`, so `batch_size` and the company a prompt is in
    change speed and memory, and results only where rounding tips a token that stood on the edge.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer.
        prompts: token ids, each list at least one long.
        max_new_tokens: longest response.
        temperature: divides the logits; 0 takes the likeliest token.
        seed: of the sampling.
        batch_size: prompts answered at once, taken by length so that little is padding.
        on_progress: called with the number of prompts answered since the last call.

    Returns:
        Token ids of each response, in the order of the prompts, up to its first stop token, which is included.

    Raises:
        InputError: a prompt and its response do not fit the model's context.
    """
    _check_context(model, prompts, max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(prompts), max_new_tokens, generator=generator, dtype=torch.float64)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    stops = stop_tokens(model, tokenizer)
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), batch_size):
        rows = by_length[start : start + batch_size]
        answers = _answer_together(model, [prompts[row] for row in rows], noise[rows], temperature, stops)
        for row, answer in zip(rows, answers, strict=True):
            responses[row] = answer
        if on_progress is not None:
            on_progress(len(rows))
    return responses


@torch.inference_mode()
def _answer_together(
    model: nn.Module, prompts: Sequence[Sequence[int]], noise: Tensor, temperature: float, stops: Sequence[int]
) -> list[list[int]]:
    """Answer one batch; `noise` is (B, T) in [0, 1), one number for each token that may be sampled."""
    device = unwrapped(model).device
    noise, stop_ids = noise.to(device), torch.tensor(stops, device=device)
    input_ids, attention_mask = _padded_left(prompts, stops[0], device)
    rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch belongs to
    tokens = torch.full(noise.shape, stops[0], device=device)
    lengths = torch.full((len(prompts),), noise.shape[1], device=device)
    is_open = torch.ones_like(rows, dtype=torch.bool)
    cache = None
    for t in range(noise.shape[1]):
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask)[:, -input_ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, sampled = output.past_key_values, _sample(output.logits[:, -1], noise[rows, t], temperature)
        tokens[rows, t] = sampled
        ends = is_open & torch.isin(sampled, stop_ids)
        lengths[rows[ends]] = t + 1
        is_open &= ~ends
        count = int(is_open.sum())
        if count == 0:
            break
        if count <= COMPACT_AT * len(rows):
            cache.reorder_cache(is_open.nonzero()[:, 0])
            rows, sampled, attention_mask = rows[is_open], sampled[is_open], attention_mask[is_open]
            is_open = is_open[is_open]
        input_ids = sampled[:, None]
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids, dtype=torch.bool)], dim=1)
    return [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def _sample(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Invert the cumulative distribution at `noise` (B,): logits (B, V) to token ids (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    cumulative = (probabilities.double() * RESOLUTION).long().cumsum(dim=-1)
    place = (noise[:, None] * cumulative[:, -1:]).long()
    token = torch.searchsorted(cumulative, place, right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)  # NaN has no distribution: it must show as NaN where it is measured


def _padded_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, longest prompt); what stands in the padding is masked and does not matter."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    starts = torch.tensor([[width - len(prompt)] for prompt in prompts], device=device)
    return torch.tensor(ids, device=device), torch.arange(width, device=device) >= starts


def _check_context(model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    context, longest = context_length(model), max((len(prompt) for prompt in prompts), default=0)
    if context is not None and longest + max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and an answer of {max_new_tokens} exceed the model's context of {context}: "
            "lower max_new_tokens or validate.max_tokens"
        )
