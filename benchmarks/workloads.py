"""The work that all variants do: models of random weights, rows of mixed lengths, and what that costs in arithmetic."""

import itertools
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.data.encoding.tokens import Encoded, EncodedPair

PAD, EOS, FIRST_WORD = 0, 1, 4
CONTEXT = 2048


class Size(NamedTuple):
    """The shape of a Llama."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    inner: int


SIZES = {
    "XS": Size(vocabulary=2048, hidden=64, layers=2, heads=2, inner=176),  # for a look and for tests
    "S": Size(vocabulary=8192, hidden=256, layers=6, heads=4, inner=704),
    "M": Size(vocabulary=8192, hidden=512, layers=8, heads=8, inner=1408),
    "L": Size(vocabulary=32_768, hidden=1536, layers=24, heads=24, inner=4096),  # .8 billion weights, for a GPU
    "0.5B": Size(vocabulary=32_768, hidden=1280, layers=20, heads=20, inner=3456),
    "1.5B": Size(vocabulary=32_768, hidden=2048, layers=26, heads=16, inner=5632),
}


def make_model(size: Size, folder: Path) -> None:
    """Write a Llama of random weights and a tokenizer of one token a word, as every variant loads them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a GPU draws a billion weights in no time
        model = LlamaForCausalLM(config)
    assert model.generation_config is not None
    # Random weights hardly ever choose one certain token: with these an answer ends after 64 tokens on average.
    model.generation_config.eos_token_id = [EOS, *range(size.vocabulary - size.vocabulary // 64, size.vocabulary)]
    model.save_pretrained(folder)
    names = ["<pad>", "<eos>", "<unk>", "<sep>", *(f"w{number}" for number in range(FIRST_WORD, size.vocabulary))]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=CONTEXT
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)


class Texts:
    """Words by a Zipf-like law, in lengths that are log-normal: many short, a few long."""

    def __init__(self, size: Size, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = range(FIRST_WORD, size.vocabulary)
        self._weights = list(itertools.accumulate(1 / (place + 2.7) for place in range(len(self._words))))

    def words(self, mean: int, most: int) -> list[int]:
        """Draw a text of at least 3 words."""
        spread = 0.8
        drawn = self._random.lognormvariate(math.log(mean) - spread**2 / 2, spread)
        return self._random.choices(self._words, cum_weights=self._weights, k=max(3, min(most, round(drawn))))

    def prompts(self, count: int) -> list[list[int]]:
        """Prompts to be answered, of 60 tokens on average."""
        return [self.words(60, 256) for _ in range(count)]

    def rows(self, count: int) -> list[Encoded]:
        """Prompts of 40 and answers of 60 tokens on average, 512 together at most."""
        return [Encoded(self.words(40, 256), [*self.words(60, 255), EOS]) for _ in range(count)]

    def pairs(self, count: int) -> list[EncodedPair]:
        """Two answers to each prompt."""
        pairs = []
        for _ in range(count):
            prompt = self.words(40, 256)
            pairs.append(EncodedPair(*(Encoded(prompt, [*self.words(60, 255), EOS]) for _ in range(2))))
        return pairs


def forward_operations(size: Size, prompt: int, answers: Sequence[int], *, has_logits: bool = True) -> float:
    """Floating-point operations that reading a prompt once, and each answer behind it, needs: no padding.

    Multiplications with weights and in causal attention are counted, logits only for the answers' tokens.

    Args:
        size: of the model.
        prompt: tokens.
        answers: tokens of each.
        has_logits: there is a head over the vocabulary.
    """
    weights = size.layers * (4 * size.hidden**2 + 3 * size.hidden * size.inner)
    seen = prompt * (prompt + 1) / 2 + sum(answer * prompt + answer * (answer + 1) / 2 for answer in answers)
    logits = 2 * size.hidden * size.vocabulary * sum(answers) if has_logits else 0
    return 2 * weights * (prompt + sum(answers)) + size.layers * 4 * size.hidden * seen + logits


def matrix_peak(device: torch.device, precision: torch.dtype) -> float:
    """Floating-point operations a second of the best of ten large matrix products: what the machine can do at most."""
    width = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(width, width, device=device, dtype=precision) for _ in range(2))
    best = math.inf
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best
