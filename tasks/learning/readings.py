"""What is read off a policy, a reward model or a critic, token by token or row by row."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.learning.batches import Batch
from tasks.learning.forward import completion_logits, last_states, unwrapped
from tasks.learning.models import score_head


class TokenStatistics(NamedTuple):
    """What a policy says of every token of a completion; 0 or False outside the completion."""

    log_probs: Tensor  # (B, L) fp32: log p(token t | tokens before t)
    entropies: Tensor  # (B, L) fp32: entropy in nats of the distribution that token t is drawn from
    are_likeliest: Tensor  # (B, L) bool: no other token was more probable


def completion_log_probs(policy: nn.Module, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probability of every completion token at a sampling temperature, (B, L) fp32.

    Entry t is log p(token t | tokens before t), 0 outside the completion: it lines up with `input_ids`.
    """
    logits, tokens = completion_logits(policy, batch, temperature)
    log_probs = -functional.cross_entropy(logits, tokens, reduction="none")
    return _spread(log_probs, batch.completion_mask)


def token_statistics(policy: nn.Module, batch: Batch, temperature: float = 1.0) -> TokenStatistics:
    """Log-probability and entropy of every completion token, and whether it was the likeliest."""
    logits, tokens = completion_logits(policy, batch, temperature)
    log_distribution = logits.log_softmax(dim=-1)
    log_probs = log_distribution.gather(1, tokens[:, None])[:, 0]
    entropies = -(log_distribution.exp() * log_distribution).sum(dim=-1)
    likeliest = log_distribution.amax(dim=-1) == log_probs
    return TokenStatistics(*(_spread(each, batch.completion_mask) for each in (log_probs, entropies, likeliest)))


def completion_scores(model: nn.Module, batch: Batch) -> Tensor:
    """Score of every row, (B,) fp32, read at its last token and normalised as the model's config says.

    The last token is found by its position: never by looking for padding ids, which may be the end-of-sequence id.
    """
    place = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    last = (place * batch.attention_mask).amax(dim=1, keepdim=True)
    return _head_outputs(model, batch, place == last)


def completion_values(model: nn.Module, batch: Batch) -> Tensor:
    """Value V(x, y_<t) at the index of every completion token t, (B, L) fp32, 0 outside the completion.

    It is read from the hidden state at t - 1, which has not seen token t; on the scale of the normalised score.
    """
    predicting = functional.pad(batch.completion_mask[:, 1:], (0, 1))
    return _spread(_head_outputs(model, batch, predicting), batch.completion_mask)


def _head_outputs(model: nn.Module, batch: Batch, wanted: Tensor) -> Tensor:
    """The normalised outputs (N,) of the scalar head at the N True places of `wanted` (B, L), row after row."""
    states = last_states(model, batch, wanted)
    with torch.autocast(states.device.type, enabled=False):  # bf16 would round a score of 3 to steps of 1/64
        raw = score_head(model)(states.float())[..., 0]
    config = unwrapped(model).config
    bias, gain = (getattr(config, name, default) for name, default in (("score_bias", 0.0), ("score_gain", 1.0)))
    scores: Tensor = (raw + bias) * gain
    return scores


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Lay values (N,) on the N True places of a mask (B, L), with 0 or False elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
