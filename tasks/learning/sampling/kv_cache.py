"""Keys and values of many sequences at once, each in its own row, which another sequence takes when it is done.

Nothing is padded: every sequence has its own length, prompts are read packed, and a forward pass adds one token to
every row in place, without a copy.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from tasks.learning.batches import Packing
from tasks.learning.models.attention import CacheView
from tasks.learning.models.forward import computing

ROWS_IN_A_BLOCK = 8
COLUMNS_AT_ONCE = 64  # tokens that room is made for together


class RaggedCache(Cache):
    """The cache that a model's attention layers write to and read from; it knows nothing of tokens."""

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        """Begin with `count` sequences of at most `width` tokens; room is made as the longest of them grows."""
        super().__init__(layers=[])
        self.lengths = torch.zeros(count, dtype=torch.long, device=device)  # (R,) tokens in each row
        self._width, self._columns, self._filled = width, 0, 0
        self._keys: list[Tensor] = []  # (R, K, width, D) each, one a layer
        self._values: list[Tensor] = []
        self._places: Tensor | None = None  # of a prompt's tokens in the packed row, while prompts are read
        self._taken = torch.empty(0, dtype=torch.long, device=device)  # (n,) the rows that those prompts go to

    def read_prompts(self, model: nn.Module, packing: Packing, lengths: Tensor, rows: Tensor) -> Tensor:
        """Read prompts into some rows, in place of what they hold; returns the logits behind each prompt, (n, V).

        Args:
            model: reads packed rows.
            packing: of the n prompts.
            lengths: (n,) of the prompts, in tokens.
            rows: (n,) where they go.
        """
        self.lengths[rows] = lengths
        self._make_room(packing.places.shape[1] + 1)
        self._places, self._taken = packing.places, rows
        ends = packing.places.gather(1, lengths[:, None] - 1)[:, 0]
        with computing(model):
            logits: Tensor = model(
                input_ids=packing.input_ids,
                position_ids=packing.position_ids,
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device),
                past_key_values=self,
                use_cache=True,
                logits_to_keep=ends,
                trees=packing.trees,
            ).logits[0]
        self._places = None
        return logits

    def read_tokens(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Read one more token (R,) into every row; returns the logits behind it, (R, V)."""
        view = self._view()
        self._filled = max(width for _, _, width in view.blocks)
        self._make_room(self._filled)
        with computing(model):
            logits: Tensor = model(
                input_ids=tokens[:, None],
                position_ids=self.lengths[:, None],
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
                past_key_values=self,
                use_cache=True,
                logits_to_keep=1,
                cache_view=view,
            ).logits[:, -1]
        # A sequence that is done, and waits for another to take its row, may stand at the end of it.
        self.lengths = (self.lengths + 1).clamp(max=self._width - 1)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but some, (n,)."""
        self.lengths = self.lengths[rows]
        self._keys, self._values = ([layer[rows] for layer in each] for each in (self._keys, self._values))

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, and give those it is to attend to: transformers calls this."""
        if layer_idx == len(self._keys):
            self._keys.append(self._room(key_states))
            self._values.append(self._room(value_states))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._places is not None:
            width = self._places.shape[1]
            keys[self._taken, :, :width] = key_states[0][:, self._places].transpose(0, 1).to(keys.dtype)
            values[self._taken, :, :width] = value_states[0][:, self._places].transpose(0, 1).to(values.dtype)
            return key_states, value_states
        rows = torch.arange(len(keys), device=keys.device)
        keys[rows, :, self.lengths] = key_states[:, :, 0].to(keys.dtype)
        values[rows, :, self.lengths] = value_states[:, :, 0].to(values.dtype)
        return keys[:, :, : self._filled], values[:, :, : self._filled]

    def _view(self) -> CacheView:
        # An accelerator would rather have one large call.
        size = ROWS_IN_A_BLOCK if self.lengths.device.type == "cpu" else len(self.lengths)
        lengths = self.lengths.tolist()
        starts = range(0, len(lengths), size)
        blocks = [(start, start + size, max(lengths[start : start + size]) + 1) for start in starts]
        return CacheView(self.lengths, blocks)

    def _room(self, states: Tensor) -> Tensor:
        """Zeros, not empty memory: what is masked is still multiplied, and memory may hold NaN.

        In the precision that attention computes in, though rotated keys come in fp32 under autocast.
        """
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        return states.new_zeros(self._rows, states.shape[1], self._columns, states.shape[3], dtype=dtype)

    @property
    def _rows(self) -> int:
        return len(self.lengths)

    def _make_room(self, columns: int) -> None:
        """Widen the layers, one after the other, by half at least: most answers end long before the longest may."""
        if columns <= self._columns:
            return
        wanted, held = max(columns, self._columns * 3 // 2), self._columns
        self._columns = min(-(-wanted // COLUMNS_AT_ONCE) * COLUMNS_AT_ONCE, self._width)
        for layers in (self._keys, self._values):
            for number, layer in enumerate(layers):
                layers[number] = layer.new_zeros(*layer.shape[:2], self._columns, layer.shape[3])
                layers[number][:, :, :held] = layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Say how many tokens came before: no one number, but models are given every token's position and mask."""
        return 0
