"""Sequences that are read side by side, which others join and leave between two steps.

Models that read packed rows take new sequences at any step. For the others a batch is whole before its first step, and
what comes later waits for its end.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import collate, positions
from tasks.learning.models.forward import compute_device, computing, is_packed
from tasks.learning.sampling.kv_cache import RaggedCache


class LiveBatch(Protocol):
    """R sequences, which keep their order but for the one that takes the place of another that leaves."""

    @property
    def takes_more(self) -> bool:
        """Whether sequences can be added now."""

    def add(self, prompts: Sequence[Sequence[int]], widths: Sequence[int]) -> Tensor:
        """Add n sequences behind the others; returns the logits behind their prompts, (n, V).

        Args:
            prompts: token ids, each list at least one long.
            widths: tokens of each prompt and its longest answer.
        """

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every sequence; returns the logits behind them, (R, V)."""

    def leave(self, place: int) -> None:
        """Give up a sequence, whose place the last one takes."""


def live_batch(model: nn.Module) -> LiveBatch:
    """Begin a batch without sequences."""
    return PackedBatch(model) if is_packed(model) else PaddedBatch(model)


class GrowingCache(RaggedCache):
    """A RaggedCache whose rows come and go: room for more of them, and for longer ones, is made when it is needed."""

    def __init__(self, device: torch.device) -> None:
        """Begin without rows."""
        super().__init__(0, 0, device)
        # (C, K, width, D) each, one a layer, of which the rows in use are the first: `_keys` and `_values` show these.
        self._all_keys: list[Tensor] = []
        self._all_values: list[Tensor] = []
        self._capacity = 0

    def add(self, count: int, width: int) -> Tensor:
        """Make room for further sequences of at most `width` tokens; returns their rows, (count,)."""
        first = len(self.lengths)
        if first + count > self._capacity or width > self._width:
            capacity = max(first + count, 2 * self._capacity) if first + count > self._capacity else self._capacity
            self._resize(capacity, max(width, self._width))
        self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(count)])
        self._show()
        return torch.arange(first, first + count, device=self.lengths.device)

    def leave(self, row: int) -> None:
        """Give up a row, whose place the last one takes."""
        last = len(self.lengths) - 1
        if row != last:
            length = int(self.lengths[last])
            for layer in (*self._all_keys, *self._all_values):
                layer[row, :, :length] = layer[last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last]
        self._show()

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, and give those it is to attend to: transformers calls this."""
        if layer_idx == len(self._all_keys):
            self._all_keys.append(self._room(key_states))
            self._all_values.append(self._room(value_states))
            self._show()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def _rows(self) -> int:
        return self._capacity

    def _resize(self, capacity: int, width: int) -> None:
        rows, columns = len(self.lengths), self._width
        self._capacity, self._width, self._columns = capacity, width, width
        for layers in (self._all_keys, self._all_values):
            for number, layer in enumerate(layers):
                layers[number] = layer.new_zeros(capacity, layer.shape[1], width, layer.shape[3])
                layers[number][:rows, :, :columns] = layer[:rows]

    def _show(self) -> None:
        rows = len(self.lengths)
        self._keys = [layer[:rows] for layer in self._all_keys]
        self._values = [layer[:rows] for layer in self._all_values]


class PackedBatch:
    """A batch of a model that reads packed rows, which sequences join at any step."""

    takes_more = True

    def __init__(self, model: nn.Module) -> None:
        """Begin without sequences."""
        self._model, self._device = model, compute_device(model)
        self._cache = GrowingCache(self._device)

    def add(self, prompts: Sequence[Sequence[int]], widths: Sequence[int]) -> Tensor:
        """Add sequences behind the others, see `LiveBatch`."""
        packing = collate([Encoded(list(prompt), []) for prompt in prompts], self._device).packing
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        return self._cache.read_prompts(self._model, packing, lengths, self._cache.add(len(prompts), max(widths)))

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every sequence."""
        return self._cache.read_tokens(self._model, torch.tensor(tokens, device=self._device))

    def leave(self, place: int) -> None:
        """Give up a sequence, whose place the last one takes."""
        self._cache.leave(place)
        if len(self._cache.lengths) == 0:  # one long answer must not hold its memory for ever
            self._cache = GrowingCache(self._device)


class PaddedBatch:
    """A batch of a model with a cache of its own, padded on the left: whole before its first step."""

    def __init__(self, model: nn.Module) -> None:
        """Begin without sequences."""
        self._model, self._device = model, compute_device(model)
        self._cache: Any = None
        self._mask = torch.empty(0, 0, dtype=torch.bool, device=self._device)  # (R, tokens so far)

    @property
    def takes_more(self) -> bool:
        """Whether sequences can be added now."""
        return self._cache is None

    def add(self, prompts: Sequence[Sequence[int]], widths: Sequence[int]) -> Tensor:
        """Begin the batch, see `LiveBatch`."""
        longest = max(map(len, prompts))
        rows = [functional.pad(torch.tensor(prompt), (longest - len(prompt), 0)) for prompt in prompts]
        self._mask = torch.stack(
            [torch.arange(longest) >= longest - len(prompt) for prompt in prompts],
        ).to(self._device)
        return self._read(torch.stack(rows).to(self._device))

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every sequence."""
        ids = torch.tensor(tokens, device=self._device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
        return self._read(ids)

    def leave(self, place: int) -> None:
        """Give up a sequence, whose place the last one takes."""
        *others, last = range(len(self._mask))
        if not others:
            self._cache = None
            return
        rows = torch.tensor([last if row == place else row for row in others], device=self._device)
        self._mask = self._mask[rows]
        self._cache.reorder_cache(rows)

    def _read(self, ids: Tensor) -> Tensor:
        with computing(self._model):
            output = self._model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions(self._mask)[:, -ids.shape[1] :],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
