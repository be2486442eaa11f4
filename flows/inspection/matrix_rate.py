"""How fast a device multiplies matrices of a model's shape."""

import time

import torch
from transformers import PreTrainedConfig

from tasks.learning.models.precision import DTYPES
from tasks.settings.choices import Precision

SECONDS = 0.3  # of measuring
MOST_TOKENS = 2048


def matrix_rate(config: PreTrainedConfig, precision: Precision, tokens: int, device: torch.device) -> float:
    """Measure floating-point operations a second of the product of a model's largest layer.

    Args:
        config: the model.
        precision: of the product.
        tokens: rows of the left factor, at most `MOST_TOKENS`.
        device: where.
    """
    text, dtype = config.get_text_config(), DTYPES[precision]
    width: int = text.hidden_size
    count = min(tokens, MOST_TOKENS)
    inner: int = getattr(text, "intermediate_size", None) or 4 * width
    states = torch.ones(count, width, dtype=dtype, device=device)
    weight = torch.ones(inner, width, dtype=dtype, device=device)
    rounds, started = 0, 0.0
    while True:
        torch.nn.functional.linear(states, weight)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if rounds == 0:
            started = time.monotonic()  # the first one is not measured
        elif time.monotonic() - started >= SECONDS:
            return 2 * count * width * inner * rounds / (time.monotonic() - started)
        rounds += 1
