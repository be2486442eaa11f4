"""How fast this machine trains and samples: a short measurement with the base model."""

import time
from typing import NamedTuple

import torch

from tasks.common.files import MODELS
from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.learning.batches import collate
from tasks.learning.maths.losses import sft_loss
from tasks.learning.models.loading import load_policy, set_up, with_adapters
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.sampling.sampler import generate
from tasks.settings.params import Params

PASSES = 3  # measured, after one that is not
MOST_ANSWERS = 16


class Speed(NamedTuple):
    """Tokens a second, and what was measured."""

    trained_a_second: float
    sampled_a_second: float
    how: str


def measure_speed(params: Params, row: int, prompt: int) -> Speed:
    """Train on a full micro-batch and sample answers, with the base model in one process and no optimiser step.

    Args:
        params: the settings.
        row: tokens of a typical row, at least 2.
        prompt: tokens of a typical prompt.

    Raises:
        InputError: the device is not there, or the model cannot be loaded.
    """
    device = set_up(params)
    policy = with_adapters(load_policy(MODELS / "base", params, trainable=True), params.lora)
    rows = max(1, params.runtime.max_tokens_per_micro_batch // row)
    tokenizer = load_tokenizer(MODELS / "base")
    vocabulary = len(tokenizer)
    ids = torch.randint(vocabulary, (rows, row), generator=torch.Generator().manual_seed(params.seed)).tolist()
    batch = collate([Encoded(each[: row // 2], each[row // 2 :]) for each in ids], device)
    seconds = []
    for _ in range(PASSES + 1):
        started = time.monotonic()
        log_probs = completion_log_probs(policy, batch)
        sft_loss(log_probs, batch.completion_mask, log_probs.numel()).backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
    policy.zero_grad(set_to_none=True)
    answers = min(MOST_ANSWERS, params.runtime.max_concurrent_sequences)
    longest = params.evaluate.max_new_tokens
    started = time.monotonic()
    with torch.no_grad():
        found = generate(
            policy.eval(),
            tokenizer,
            [(ids[0] * prompt)[:prompt]] * answers,
            max_new_tokens=longest,
            temperature=1.0,
            seed=params.seed,
            max_concurrent_sequences=answers,
        )
    sampled = sum(len(answer.row.completion) for answer in found) / (time.monotonic() - started)
    how = (
        f"{PASSES} forward and backward passes of the base model over {rows} rows of {row} tokens, and {answers} "
        f"answers of at most {longest} tokens to prompts of {prompt} tokens, on {device.type} in one process"
    )
    return Speed(round(rows * row * PASSES / sum(seconds[1:]), 1), round(sampled, 1), how)
