"""Outputs of policies, reward models and critics: log-probabilities and entropies, scores, values."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from tasks.learning.batches import Batch
from tasks.learning.maths.ensembles import ensemble_scores
from tasks.learning.models.forward import completion_logits, computing, last_states, plain_head, predicting, unwrapped
from tasks.learning.models.loading import RewardEnsemble, pooling_of, score_head

# More numbers than these are not made at once: 2^26 in fp32 are 256 MiB, and their gradient is as much again.
LARGEST_LOGITS = 2**26


class TokenOutputs(NamedTuple):
    """A policy's outputs for every token of a completion; 0 or False outside the completion."""

    log_probs: Tensor  # (B, L) fp32: log p(token t | tokens before t)
    entropies: Tensor  # (B, L) fp32: entropy in nats of the distribution that token t is drawn from
    are_likeliest: Tensor  # (B, L) bool: no other token was more probable


def completion_log_probs(
    policy: nn.Module, batch: Batch, temperature: float = 1.0, states: Tensor | None = None
) -> Tensor:
    """Log-probability of every completion token at a sampling temperature, (B, L) fp32.

    Entry t is log p(token t | tokens before t), 0 outside the completion: it lines up with `input_ids`. The last hidden
    `states` (N, d) that predict the tokens save the forward pass, if they are given.
    """

    def read(logits: Tensor, tokens: Tensor) -> tuple[Tensor]:
        return (token_log_probs(at_temperature(logits, temperature), tokens),)

    [log_probs] = _over_vocabulary(policy, batch, read, states)
    return spread(log_probs, batch.completion_mask)


def token_outputs(
    policy: nn.Module, batch: Batch, temperature: float = 1.0, states: Tensor | None = None
) -> TokenOutputs:
    """Log-probability and entropy of every completion token, and whether it was the likeliest.

    The last hidden `states` (N, d) that predict them save the forward pass, if they are given.
    """

    def read(logits: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        scaled = at_temperature(logits, temperature)
        log_distribution = scaled.log_softmax(dim=-1)
        entropies = -(log_distribution.exp() * log_distribution).sum(dim=-1)
        are_likeliest = scaled.gather(1, tokens[:, None])[:, 0] == scaled.amax(dim=-1)
        # Not taken from the distribution, from which `completion_log_probs` differs in the last bit.
        return token_log_probs(scaled, tokens), entropies, are_likeliest

    found = _over_vocabulary(policy, batch, read, states)
    return TokenOutputs(*(spread(each, batch.completion_mask) for each in found))


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (N, V) of the sampling distribution, in fp32; at temperature 1 not copied once more."""
    return logits.float() if temperature == 1 else logits.float() / temperature


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability (N,) of tokens (N,) under fp32 logits (N, V): log p = z_token - log sum exp z.

    Its gradient is written out: that of a log-softmax reads and writes all logits several times for one entry a row.
    """
    log_probs: Tensor = _TokenLogProbs.apply(logits, tokens)  # type: ignore[no-untyped-call]
    return log_probs


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(context: FunctionCtx, logits: Tensor, tokens: Tensor) -> Tensor:
        totals = logits.logsumexp(dim=1)
        context.save_for_backward(logits, tokens, totals)
        return logits.gather(1, tokens[:, None])[:, 0] - totals

    @staticmethod
    def backward(context: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, tokens, totals = context.saved_tensors  # type: ignore[attr-defined]
        minus_softmax = (logits - totals[:, None]).exp_().mul_(-gradient[:, None])
        return minus_softmax.scatter_add_(1, tokens[:, None], gradient[:, None]), None


def _over_vocabulary(
    policy: nn.Module, batch: Batch, read: Callable[[Tensor, Tensor], tuple[Tensor, ...]], states: Tensor | None
) -> tuple[Tensor, ...]:
    """Read something off the logits (N, V) that score the N completion tokens, and off those tokens (N,); (N,) each.

    Where all logits together would be large they are made a few at a time, and made again in the backward pass. A
    policy whose head alone does not make its logits makes them from the beginning, whatever `states` there are.
    """
    tokens = batch.input_ids[batch.completion_mask]
    at_once = max(1, LARGEST_LOGITS // unwrapped(policy).config.get_text_config().vocab_size)
    head = plain_head(policy) if states is not None or len(tokens) > at_once else None
    if head is None:
        return read(completion_logits(policy, batch), tokens)
    if states is None:
        states = last_states(policy, batch, predicting(batch))

    def part(its_states: Tensor, its_tokens: Tensor) -> tuple[Tensor, ...]:
        with computing(policy):
            logits = head(its_states)
        return read(logits, its_tokens)

    if len(tokens) <= at_once:
        return part(states, tokens)
    parts = [
        checkpoint(part, *pair, use_reentrant=False, preserve_rng_state=False)
        for pair in zip(torch.split(states, at_once), torch.split(tokens, at_once), strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def completion_scores(model: nn.Module, batch: Batch) -> Tensor:
    """Score of every row, (B,) fp32, read at its pooled states and normalised as the model's config says.

    Of an ensemble it is the score that its members have together.
    """
    if isinstance(model, RewardEnsemble):
        return ensemble_scores(torch.stack([completion_scores(each, batch) for each in model.members]), model.penalty)
    return head_outputs(model, pooled_states(model, batch))


def pooled_states(model: nn.Module, batch: Batch) -> Tensor:
    """What the scalar head reads of every row, (B, d): one hidden state or the mean of some, as its config says.

    `last` is the last hidden state of the row's last token, found by its position: never by looking for padding ids,
    which may be the end-of-sequence id. `mean` is the mean over the completion's tokens, in fp32.
    """
    if pooling_of(model) == "mean":
        counts = [len(row.completion) for row in batch.rows]
        states = last_states(model, batch, batch.completion_mask).float()
        return torch.stack([row.mean(dim=0) for row in torch.split(states, counts)])
    place = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    last = (place * batch.attention_mask).amax(dim=1, keepdim=True)
    return last_states(model, batch, place == last)


def completion_values(model: nn.Module, batch: Batch) -> Tensor:
    """Value V(x, y_<t) at the index of every completion token t, (B, L) fp32, 0 outside the completion.

    It is read from the hidden state at t - 1, which has not seen token t; on the scale of the normalised score. A
    critic that starts from a reward model with mean pooling starts from that token's own part of the mean.
    """
    states = last_states(model, batch, predicting(batch))
    return spread(head_outputs(model, states), batch.completion_mask)


def head_outputs(model: nn.Module, states: Tensor) -> Tensor:
    """The normalised outputs (N,) of the scalar head for hidden states (N, d)."""
    with torch.autocast(states.device.type, enabled=False):  # bf16 would round a score of 3 to steps of 1/64
        raw = score_head(model)(states.float())[..., 0]
    config = unwrapped(model).config
    bias, gain = (getattr(config, name, default) for name, default in (("score_bias", 0.0), ("score_gain", 1.0)))
    scores: Tensor = (raw + bias) * gain
    return scores


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Lay values (N,) on the N True places of a mask (B, L), with 0 or False elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
