"""Sampling responses from a policy over the model's own forward: packed where it reads packed rows, else padded.

Sampling is plain: the temperature and nothing else. A model's generation_config (top-k, repetition penalty, ...) is
not used, but for its stop tokens, because PPO needs the log-probability of the distribution it sampled from.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import collate, positions
from tasks.learning.models.forward import compute_device, computing, is_packed, layers_as_written, unwrapped
from tasks.learning.models.loading import context_length
from tasks.learning.sampling.copies import sampling_copy
from tasks.learning.sampling.kv_cache import RaggedCache

# Finished rows leave the batch when no more than this share of it goes on: dropping them copies the cache.
COMPACT_AT = 0.75
# Probabilities are laid out on this many steps: integers add up alike in any order, on any device.
RESOLUTION = 2**40


class Response(NamedTuple):
    """A prompt with an answer of n tokens, and what the policy says of each of them, at the sampling temperature."""

    row: Encoded
    log_probs: Tensor  # (n,) fp32
    entropies: Tensor | None  # (n,) fp32, nats, of the distribution the token was drawn from, where the engine says


class SampledTokens(NamedTuple):
    """The next token of R responses."""

    tokens: Tensor  # (R,) long
    log_probs: Tensor  # (R,) fp32
    entropies: Tensor  # (R,) fp32


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
    max_concurrent_sequences: int,
    indices: Sequence[int] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> list[Response]:
    """Answer prompts by sampling, a pure function of its arguments.

    Every prompt has its own random numbers, by its place in `prompts`, so
    `max_concurrent_sequences` and the prompts beside it change speed and memory, and the result only by rounding.

    Args:
        model: a causal language model, with or without adapters.
        tokenizer: its tokenizer.
        prompts: token ids, each list at least one long.
        max_new_tokens: longest response.
        temperature: divides the logits; 0 takes the likeliest token.
        seed: of the sampling.
        max_concurrent_sequences: prompts answered side by side; one that is answered makes room for the next.
        indices: which of the prompts to answer, as places in `prompts`; all unless given.
        on_progress: called with the number of prompts answered since the last call.

    Returns:
        The responses in the order of the prompts, each up to its first stop token, which is included.

    Raises:
        InputError: a prompt and its response do not fit the model's context.
    """
    model = sampling_copy(model)
    check_context(model, prompts, max_new_tokens)
    transcript = Transcript(
        model,
        stop_tokens(model, tokenizer),
        len(prompts),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_progress=on_progress,
    )
    wanted = range(len(prompts)) if indices is None else sorted(indices)
    with layers_as_written(model):
        if is_packed(model):
            _answer_packed(model, prompts, wanted, transcript, max_concurrent_sequences)
        else:
            by_length = sorted(wanted, key=lambda row: len(prompts[row]))  # so that little is padding
            for start in range(0, len(by_length), max_concurrent_sequences):
                _answer_padded(model, prompts, transcript, by_length[start : start + max_concurrent_sequences])
    return transcript.responses(prompts, wanted)


class Transcript:
    """The responses so far to each of n prompts, and the random numbers for their next tokens."""

    def __init__(
        self,
        model: nn.Module,
        stops: Sequence[int],
        count: int,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_progress: Callable[[int], object] | None,
    ) -> None:
        device, shape = compute_device(model), (count, max_new_tokens)
        # On the CPU whatever the device, and for all prompts at once: an answer's numbers depend on its place alone.
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.rand(shape, generator=generator, dtype=torch.float64).to(device)
        self._stops = torch.tensor(stops, device=device)
        self._temperature, self._on_progress = temperature, on_progress
        self._tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self._log_probs, self._entropies = torch.zeros(2, *shape, device=device)
        self._lengths = torch.zeros(count, dtype=torch.long, device=device)

    @property
    def max_new_tokens(self) -> int:
        """Tokens of the longest response there may be."""
        return self._tokens.shape[1]

    def draw(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Add a token to some responses.

        Args:
            rows: (R,) which prompts are answered.
            logits: (R, V) for their next tokens.

        Returns:
            The tokens (R,), and whether each response goes on (R,) bool.
        """
        columns = self._lengths[rows]
        drawn = sample(logits, self._noise[rows, columns], self._temperature)
        places = rows, columns
        self._tokens[places], self._log_probs[places], self._entropies[places] = drawn
        self._lengths[rows] += 1
        goes_on = (columns + 1 < self._tokens.shape[1]) & ~torch.isin(drawn.tokens, self._stops)
        if self._on_progress is not None and (ended := len(rows) - int(goes_on.sum())):
            self._on_progress(ended)
        return drawn.tokens, goes_on

    def responses(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> list[Response]:
        """Give the responses to some of the prompts, behind them."""
        tokens, lengths = self._tokens.tolist(), self._lengths.tolist()
        return [
            Response(
                Encoded(list(prompts[row]), tokens[row][: lengths[row]]),
                self._log_probs[row, : lengths[row]],
                self._entropies[row, : lengths[row]],
            )
            for row in rows
        ]


@torch.inference_mode()
def _answer_packed(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    wanted: Sequence[int],
    transcript: Transcript,
    count: int,
) -> None:
    """Answer the prompts that are wanted, `count` side by side."""
    device, waiting = compute_device(model), deque(wanted)
    count = min(count, len(wanted))
    longest = max((len(prompt) for prompt in prompts), default=0)
    cache = RaggedCache(count, longest + transcript.max_new_tokens, device)
    rows = torch.zeros(count, dtype=torch.long, device=device)  # which prompt is in each row of the cache
    tokens, is_open = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    while waiting or bool(is_open.any()):
        free = (~is_open).nonzero()[:, 0]
        if waiting and len(free) >= (1 - COMPACT_AT) * len(rows):
            free = free[: len(waiting)]
            # Neighbours of like length: attention reads blocks of rows as wide as their longest.
            new = sorted((waiting.popleft() for _ in free), key=lambda row: len(prompts[row]))
            packing = collate([Encoded(list(prompts[row]), []) for row in new], device).packing
            lengths = torch.tensor([len(prompts[row]) for row in new], device=device)
            logits = cache.read_prompts(model, packing, lengths, free)
            rows[free] = torch.tensor(new, device=device)
            tokens[free], is_open[free] = transcript.draw(rows[free], logits)
            continue
        if len(free) >= (1 - COMPACT_AT) * len(rows):
            unfinished = is_open.nonzero()[:, 0]
            cache.keep(unfinished)
            rows, tokens, is_open = rows[unfinished], tokens[unfinished], is_open[unfinished]
        logits, open_rows = cache.read_tokens(model, tokens), is_open.nonzero()[:, 0]
        tokens[open_rows], is_open[open_rows] = transcript.draw(rows[open_rows], logits[open_rows])


@torch.inference_mode()
def _answer_padded(
    model: nn.Module, prompts: Sequence[Sequence[int]], transcript: Transcript, indices: Sequence[int]
) -> None:
    """Answer some prompts in one batch, with the model's own cache: for families that cannot read packed rows."""
    device = compute_device(model)
    input_ids, attention_mask = _padded_left([prompts[number] for number in indices], device)
    rows = torch.tensor(indices, device=device)
    is_open, cache = torch.ones_like(rows, dtype=torch.bool), None
    while True:
        with computing(model):
            output = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=positions(attention_mask)[:, -input_ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache, tokens, open_rows = output.past_key_values, torch.zeros_like(rows), is_open.nonzero()[:, 0]
        tokens[open_rows], is_open[open_rows] = transcript.draw(rows[open_rows], output.logits[open_rows, -1])
        unfinished = is_open.nonzero()[:, 0]
        if len(unfinished) == 0:
            return
        # Not at every finished answer: copying the cache costs as much as several steps.
        if len(unfinished) <= COMPACT_AT * len(rows):
            cache.reorder_cache(unfinished)
            rows, tokens, is_open, attention_mask = (
                rows[unfinished],
                tokens[unfinished],
                is_open[unfinished],
                attention_mask[unfinished],
            )
        input_ids = tokens[:, None]
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids, dtype=torch.bool)], dim=1)


def sample(logits: Tensor, noise: Tensor, temperature: float) -> SampledTokens:
    """Draw a token from each of R distributions.

    Args:
        logits: (R, V).
        noise: (R,) in [0, 1), at which the cumulative distributions are inverted.
        temperature: divides the logits; 0 takes the likeliest token, of which there is no doubt.

    Returns:
        Tokens, their log-probabilities, and the entropies of the distributions; each (R,).
    """
    if temperature == 0:
        certain = logits.new_zeros(len(logits), dtype=torch.float32)
        return SampledTokens(logits.argmax(dim=-1), certain, certain)
    # In fp32, since the ratio of PPO compares these log-probabilities with those of the training pass.
    log_distribution = (logits.float() / temperature).log_softmax(dim=-1)
    distribution = log_distribution.exp()
    # Whole numbers: CUDA has no deterministic cumsum of floating-point numbers.
    cumulative = (distribution.double() * RESOLUTION).long().cumsum(dim=-1)
    place = (noise[:, None] * cumulative[:, -1:]).long()
    tokens = torch.searchsorted(cumulative, place, right=True)[:, 0]
    tokens = tokens.clamp(max=logits.shape[-1] - 1)  # NaN has no distribution: it must show where it is measured
    log_probs = log_distribution.gather(1, tokens[:, None])[:, 0]
    return SampledTokens(tokens, log_probs, torch.special.entr(distribution).sum(dim=-1))


def _padded_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, longest prompt); what stands in the padding is masked and does not matter."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    starts = torch.tensor([[width - len(prompt)] for prompt in prompts], device=device)
    return torch.tensor(ids, device=device), torch.arange(width, device=device) >= starts


def check_context(model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for their answers.

    Raises:
        InputError: a prompt and its response do not fit the model's context.
    """
    context, longest = context_length(model), max((len(prompt) for prompt in prompts), default=0)
    if context is not None and longest + max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and an answer of {max_new_tokens} exceed the model's context of {context}: "
            "lower max_new_tokens or validate.max_tokens"
        )
