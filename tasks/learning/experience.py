"""The rollout phase of PPO: what policy, reference, critic and reward model say of sampled responses."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.learning.advantages import (
    estimate_advantages,
    integrated_rewards,
    kl_estimates,
    shaped_rewards,
    whiten,
)
from tasks.learning.batches import Batch, collate, micro_batches
from tasks.learning.forward import unwrapped
from tasks.learning.models import reference
from tasks.learning.readings import completion_log_probs, completion_scores, completion_values, spread, token_statistics
from tasks.learning.rollouts import Response
from tasks.params import Ppo


class Models(NamedTuple):
    """The four models of PPO, and the tokenizer they share."""

    tokenizer: PreTrainedTokenizerBase
    policy: nn.Module
    reference: PreTrainedModel | None  # None: the policy with its adapters switched off
    critic: nn.Module
    reward: PreTrainedModel


class Readings(NamedTuple):
    """What the models say of B responses in L columns; token fields are 0 outside the response."""

    log_probs: Tensor  # (B, L) under the policy that sampled, at the sampling temperature
    reference_log_probs: Tensor  # (B, L) under the reference, at the same temperature
    entropies: Tensor  # (B, L) nats, of the distribution each token was drawn from
    values: Tensor  # (B, L) the critic's V(prompt, tokens before t), in the column of token t
    scores: Tensor  # (B,) of the reward model, on its normalised scale


class Rollouts(NamedTuple):
    """One round's experience: B responses, each behind its prompt, in L columns padded on the right.

    | field               | shape       | what                                                               |
    |---------------------|-------------|--------------------------------------------------------------------|
    | batch               | 3 x (B, L)  | token ids, attention mask, completion mask (the response's tokens)  |
    | log_probs           | (B, L)      | under the policy that sampled, at the sampling temperature          |
    | reference_log_probs | (B, L)      | under the reference, at the same temperature                        |
    | entropies           | (B, L)      | nats, of the distribution each token was drawn from                 |
    | values              | (B, L)      | critic before the update                                            |
    | advantages          | (B, L)      | whitened over the round                                             |
    | returns             | (B, L)      | what the critic learns, not whitened                                |
    | scores              | (B,)        | normalised, as reported: before clip, penalty, KL and integration   |
    | has_ended           | (B,) bool   | the response ended with a stop token                                |

    Token fields are 0 outside the completion mask.
    """

    batch: Batch
    log_probs: Tensor
    reference_log_probs: Tensor
    entropies: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor
    has_ended: Tensor

    @property
    def mask(self) -> Tensor:
        """The response's tokens, (B, L) bool."""
        return self.batch.completion_mask

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and response together."""
        lengths: list[int] = self.batch.attention_mask.sum(dim=1).tolist()
        return lengths

    def take(self, rows: Sequence[int]) -> "Rollouts":
        """Give some of the rows, without the columns that are padding in all of them."""
        index, batch = torch.tensor(rows, device=self.scores.device), self.batch.take(rows)
        width = batch.input_ids.shape[1]
        fields = (field[index][:, :width] if field.ndim == 2 else field[index] for field in self[1:])
        return Rollouts(batch, *fields)


def judge(
    models: Models,
    responses: Sequence[Response],
    stops: Sequence[int],
    settings: Ppo,
    *,
    kl_coefficient: float,
    tokens: int,
    as_sampled: bool,
) -> Rollouts:
    """Read responses with all four models and turn scores into advantages.

    Args:
        models: all on one device.
        responses: what was sampled.
        stops: ids that end a response.
        settings: of PPO.
        kl_coefficient: weight of the KL penalty in this round.
        tokens: of one forward pass.
        as_sampled: take the policy's log-probabilities from the responses, not from another forward pass.
    """
    rows = [response.row for response in responses]
    batch = collate(rows, unwrapped(models.policy).device)
    readings = read_off(models, batch, settings.temperature, tokens, responses if as_sampled else None)
    has_ended = torch.tensor([row.completion[-1] in stops for row in rows], device=readings.scores.device)
    rewards = token_rewards(readings, batch.completion_mask, has_ended, settings, kl_coefficient)
    advantages, returns = estimate_advantages(
        rewards, readings.values, batch.completion_mask, settings.gamma, settings.gae_lambda
    )
    return Rollouts(
        batch=batch,
        log_probs=readings.log_probs,
        reference_log_probs=readings.reference_log_probs,
        entropies=readings.entropies,
        values=readings.values,
        advantages=whiten(advantages, batch.completion_mask),
        returns=returns,
        scores=readings.scores,
        has_ended=has_ended,
    )


def token_rewards(readings: Readings, mask: Tensor, has_ended: Tensor, settings: Ppo, kl_coefficient: float) -> Tensor:
    """Clip and penalise the scores, add the KL penalty, then integrate and whiten where the settings say so.

    Args:
        readings: of B responses.
        mask: (B, L) bool, the response's tokens.
        has_ended: (B,) bool.
        settings: of PPO.
        kl_coefficient: weight of the KL penalty.

    Returns:
        (B, L) rewards.
    """
    scores = readings.scores
    if settings.score_clip is not None:
        scores = scores.clamp(-settings.score_clip, settings.score_clip)
    scores = scores - settings.missing_eos_penalty * ~has_ended
    kl = kl_estimates(readings.log_probs, readings.reference_log_probs, mask, settings.kl_estimator)
    rewards = shaped_rewards(scores, kl, mask, kl_coefficient)
    if settings.integration_alpha < 1:
        rewards = integrated_rewards(rewards, mask, settings.integration_alpha)
    return whiten(rewards, mask, keep_mean=True) if settings.whiten_rewards else rewards


@torch.no_grad()
def read_off(
    models: Models, batch: Batch, temperature: float, tokens: int, said: Sequence[Response] | None
) -> Readings:
    """Run the models over a batch, a few rows at a time, by the same forward passes that train.

    What the policy `said` of its tokens when it sampled them saves its own pass.
    """
    shape = batch.input_ids.shape
    log_probs, references, entropies, values = (torch.zeros(shape, device=batch.input_ids.device) for _ in range(4))
    scores = torch.zeros(shape[0], device=batch.input_ids.device)
    lengths: list[int] = batch.attention_mask.sum(dim=1).tolist()
    if said is not None:
        log_probs = spread(torch.cat([each.log_probs for each in said]), batch.completion_mask)
        entropies = spread(torch.cat([each.entropies for each in said]), batch.completion_mask)
    for rows in micro_batches(range(shape[0]), lengths, tokens):
        index = torch.tensor(rows, device=batch.input_ids.device)
        part = batch.take(rows)
        width = part.input_ids.shape[1]
        if said is None:
            statistics = token_statistics(models.policy, part, temperature)
            log_probs[index, :width], entropies[index, :width] = statistics.log_probs, statistics.entropies
        with reference_policy(models) as frozen:
            references[index, :width] = completion_log_probs(frozen, part, temperature)
        values[index, :width] = completion_values(models.critic, part)
        scores[index] = completion_scores(models.reward, part)
    return Readings(log_probs, references, entropies, values, scores)


def reference_policy(models: Models) -> AbstractContextManager[nn.Module]:
    """Give the SFT model inside a block: the frozen copy, or the policy without its adapters."""
    return reference(models.policy) if models.reference is None else nullcontext(models.reference)
