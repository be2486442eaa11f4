"""Tiny models of several families with random weights, and rows for them to read."""

from copy import deepcopy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tasks.data.encoding.tokens import Encoded

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, sliding_window=8),  # caps the logits of its attention
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "gpt2": GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=2, eos_token_id=2
    ),
}
# The last shares its prompt with the first, and is longer than the sliding windows.
ROWS = [
    Encoded([5, 6, 7], [8, 9, 2]),
    Encoded([11], [12, 13, 14, 15, 16, 2]),
    Encoded([21, 22, 23, 24, 25], [2]),
    Encoded([5, 6, 7], [31, 8, 32, 9, 33, 34, 35, 36, 2]),
]


def causal(config: PreTrainedConfig, seed: int = 1) -> Any:
    """A language model that reads padded rows."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(deepcopy(config)).eval()


def scoring(config: PreTrainedConfig, seed: int = 1) -> Any:
    """A model with a scalar head that reads padded rows."""
    torch.manual_seed(seed)
    config = deepcopy(config)
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config).eval()
