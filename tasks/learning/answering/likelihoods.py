"""How likely texts are under policies: log-probabilities of answers, KL to SFT, perplexity."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.files import VALIDATED
from tasks.common.progress import track
from tasks.data.encoding.encoded import encoded_demonstrations
from tasks.data.encoding.tokens import Encoded
from tasks.learning import processes
from tasks.learning.answering.sampled import Sampled, sample
from tasks.learning.batches import Batch, collate
from tasks.learning.models.loading import context_length, device_of
from tasks.learning.models.outputs import completion_log_probs
from tasks.settings.params import Params

LARGEST_EXPONENT = 700.0  # exp of more is no float


def answer_logps(
    policy: PreTrainedModel, rows: Sequence[Encoded], params: Params, temperature: float = 1.0
) -> list[float]:
    """Log-probability of every answer at a sampling temperature, summed over its tokens."""

    def summed(batch: Batch) -> Tensor:
        return completion_log_probs(policy, batch, temperature).double().sum(dim=1)

    return by_batch(summed, rows, params, "evaluate: log-probabilities")


def kl_to_sft(
    candidate: PreTrainedModel,
    sft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampled: Sampled,
    params: Params,
) -> list[float]:
    """Unbiased estimates of KL(candidate || SFT) at the sampling temperature: log-ratios of sampled answers.

    The likeliest answers of greedy decoding are no sample: others are drawn for it, at temperature 1.
    """
    temperature, samples = params.evaluate.temperature, sampled.encoded
    if temperature == 0:
        temperature, asked = 1.0, [row.prompt for row in samples]
        drawn = sample("KL", candidate, tokenizer, asked, temperature=temperature, params=params)
        samples = [Encoded(*pair) for pair in zip(asked, drawn, strict=True)]
    ours, theirs = (answer_logps(policy, samples, params, temperature) for policy in (candidate, sft))
    return [own - other for own, other in zip(ours, theirs, strict=True)]


def perplexity(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params) -> float | None:
    """Perplexity of the demonstrated answers of the test split; None where there are none.

    A policy that was pushed away from good language has a high one, whatever its reward.
    """
    texts = encoded_demonstrations(VALIDATED, "test", tokenizer, context_length(policy))
    if not texts:
        return None
    nats = -sum(answer_logps(policy, texts, params)) / int(texts.counts[:, 1].sum())
    return math.exp(nats) if nats < LARGEST_EXPONENT else math.inf


@torch.inference_mode()
def by_batch(compute: Callable[[Batch], Tensor], encoded: Sequence[Encoded], params: Params, title: str) -> list[float]:
    """Give one number a row; every process computes a share.

    Args:
        compute: maps a batch of B rows to (B,).
        encoded: n rows.
        params: runtime.
        title: of the progress bar.
    """
    device, found = device_of(params), list[tuple[int, float]]()
    groups = processes.groups_of_rank([row.length for row in encoded], params.runtime.max_tokens_per_micro_batch)
    for places in track([group.items for group in groups if group.weight], title, "batch"):
        values = compute(collate([encoded[place] for place in places], device)).tolist()
        found += zip(places, values, strict=True)
    return [value for _, value in sorted(processes.gathered(found))]
