"""The rollout phase of PPO: what policy, reference, critic and reward model say of sampled responses."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.learning import processes
from tasks.learning.batches import Batch, collate
from tasks.learning.models.forward import last_states, predicting, unwrapped
from tasks.learning.models.loading import ValueHead, reference
from tasks.learning.models.outputs import (
    completion_log_probs,
    completion_scores,
    completion_values,
    spread,
    token_statistics,
)
from tasks.learning.ppo.advantages import (
    Advantages,
    estimate_advantages,
    integrated_rewards,
    kl_estimates,
    leave_one_out,
    rewards_to_go,
    shaped_rewards,
    standardised_in_groups,
    whiten,
)
from tasks.learning.ppo.rewards import by_reward, weighted_sum
from tasks.learning.sampling.sampler import Response
from tasks.settings.params import Ppo, TrainingReward

# Nats by which two fp32 passes over a token may differ: rounding is a hundred times smaller, another sum larger.
LARGEST_SAMPLING_ERROR = 1e-4


class Models(NamedTuple):
    """The four models of PPO, and the tokenizer they share."""

    tokenizer: PreTrainedTokenizerBase
    policy: nn.Module
    reference: PreTrainedModel | None  # None: the policy with its adapters switched off
    critic: nn.Module | None  # None: the estimator has none; a ValueHead: it reads the policy's last states
    reward: PreTrainedModel | None  # None: PPO learns from functions alone


class Readings(NamedTuple):
    """What the models say of B responses in L columns; token fields are 0 outside the response."""

    log_probs: Tensor  # (B, L) under the policy that sampled, at the sampling temperature
    reference_log_probs: Tensor  # (B, L) under the reference, at the same temperature
    entropies: Tensor  # (B, L) nats, of the distribution each token was drawn from
    values: Tensor  # (B, L) the critic's V(prompt, tokens before t), in the column of token t
    scores: Tensor  # (B,) of the reward model, on its normalised scale; 0 without one


class Rollouts(NamedTuple):
    """One round's experience: B responses, each behind its prompt, in L columns padded on the right.

    | field               | shape       | what                                                               |
    |---------------------|-------------|--------------------------------------------------------------------|
    | batch               | 3 x (B, L)  | token ids, attention mask, completion mask (the response's tokens)  |
    | log_probs           | (B, L)      | under the policy that sampled, at the sampling temperature          |
    | reference_log_probs | (B, L)      | under the reference, at the same temperature                        |
    | entropies           | (B, L)      | nats, of the distribution each token was drawn from                 |
    | values              | (B, L)      | critic before the update; 0 without one                             |
    | advantages          | (B, L)      | whitened over the round, or measured within groups                  |
    | returns             | (B, L)      | what a critic learns, not whitened                                  |
    | scores              | (B,)        | weighted sum of the rewards: before clip, penalty, KL and smoothing |
    | has_ended           | (B,) bool   | the response ended with a stop token                                |
    | by_reward           | names: (B,) | scores of each reward, before its weight                            |

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
    by_reward: dict[str, Tensor]

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
        taken = {
            name: field[index][:, :width] if field.ndim == 2 else field[index]
            for name, field in self._asdict().items()
            if isinstance(field, Tensor)
        }
        by_reward = {name: scores[index] for name, scores in self.by_reward.items()}
        return self._replace(batch=batch, by_reward=by_reward, **taken)


def judge(
    models: Models,
    responses: Sequence[Response],
    stops: Sequence[int],
    settings: Ppo,
    rewards: Sequence[TrainingReward],
    *,
    of_functions: Mapping[str, Tensor],
    kl_coefficient: float,
    groups: Sequence[Sequence[int]],
    as_sampled: bool,
) -> Rollouts:
    """Read responses with all models and turn the scores of all rewards into advantages.

    Args:
        models: all on one device.
        responses: what was sampled.
        stops: ids that end a response.
        settings: of PPO.
        rewards: what is learned from.
        of_functions: scores (B,) of those rewards that are functions, by name.
        kl_coefficient: weight of the KL penalty in this round.
        groups: the responses of each forward pass.
        as_sampled: take the policy's log-probabilities and entropies from the responses, not from another forward pass.
    """
    rows = [response.row for response in responses]
    batch = collate(rows, unwrapped(models.policy).device)
    readings = read_off(models, batch, settings.temperature, groups, responses if as_sampled else None)
    scores = by_reward(rewards, readings.scores, of_functions)
    readings = readings._replace(scores=weighted_sum(rewards, scores))
    has_ended = torch.tensor([row.completion[-1] in stops for row in rows], device=readings.scores.device)
    of_tokens = token_rewards(readings, batch.completion_mask, has_ended, settings, kl_coefficient)
    advantages, returns = advantages_of(of_tokens, readings.values, batch.completion_mask, settings)
    return Rollouts(
        batch=batch,
        log_probs=readings.log_probs,
        reference_log_probs=readings.reference_log_probs,
        entropies=readings.entropies,
        values=readings.values,
        advantages=advantages,
        returns=returns,
        scores=readings.scores,
        has_ended=has_ended,
        by_reward=scores,
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
    in_reward = 0.0 if settings.estimator == "grpo" else kl_coefficient  # grpo has it in the loss
    rewards = shaped_rewards(scores, kl, mask, in_reward)
    if settings.reward_smoothing < 1:
        rewards = integrated_rewards(rewards, mask, settings.reward_smoothing)
    return whiten(rewards, mask, keep_mean=True) if settings.whiten_rewards else rewards


def advantages_of(rewards: Tensor, values: Tensor, mask: Tensor, settings: Ppo) -> Advantages:
    """Turn the rewards of tokens into advantages by the estimator of the settings.

    Args:
        rewards: (B, L); responses to one prompt are neighbours.
        values: (B, L) of the critic.
        mask: (B, L) bool, the responses' tokens.
        settings: of PPO.

    Returns:
        Advantages and returns, (B, L) each, 0 outside the mask.
    """
    match settings.estimator:
        case "gae":
            found = estimate_advantages(rewards, values, mask, settings.gamma, settings.gae_lambda)
            return found._replace(advantages=whiten(found.advantages, mask))
        case "reinforce_plus_plus":
            returns = rewards_to_go(rewards, mask, settings.gamma)
            return Advantages(whiten(returns, mask), returns)
        case "rloo":
            of_responses = leave_one_out(rewards.sum(dim=1), settings.responses_per_prompt)
        case "grpo":
            of_responses = standardised_in_groups(rewards.sum(dim=1), settings.responses_per_prompt)
    return Advantages(torch.where(mask, of_responses[:, None], 0.0), rewards_to_go(rewards, mask, gamma=1.0))


@torch.no_grad()
def sampled_as_trained(policy: nn.Module, responses: Sequence[Response], temperature: float) -> bool:
    """Say whether what the policy said of its tokens while sampling is what its training pass says of them."""
    batch = collate([response.row for response in responses], unwrapped(policy).device)
    trained = completion_log_probs(policy, batch, temperature)[batch.completion_mask]
    said = torch.cat([response.log_probs for response in responses])
    return bool((trained - said).abs().max() <= LARGEST_SAMPLING_ERROR)


@torch.no_grad()
def read_off(
    models: Models, batch: Batch, temperature: float, groups: Sequence[Sequence[int]], said: Sequence[Response] | None
) -> Readings:
    """Run the models over a batch, this process over `groups` of its rows, by the same forward passes that train.

    What the policy `said` of its tokens when it sampled them saves its own pass.
    """
    shape = batch.input_ids.shape
    log_probs, references, entropies, values = (torch.zeros(shape, device=batch.input_ids.device) for _ in range(4))
    scores = torch.zeros(shape[0], device=batch.input_ids.device)
    if said is not None:
        log_probs = spread(torch.cat([each.log_probs for each in said]), batch.completion_mask)
        told = [each.entropies for each in said if each.entropies is not None]
        entropies = spread(torch.cat(told), batch.completion_mask)
    for rows in groups:
        index = torch.tensor(rows, device=batch.input_ids.device)
        part = batch.take(rows)
        width = part.input_ids.shape[1]
        states = trunk_states(models, part)
        if said is None:
            statistics = token_statistics(models.policy, part, temperature, states)
            log_probs[index, :width], entropies[index, :width] = statistics.log_probs, statistics.entropies
        with reference_policy(models) as frozen:
            references[index, :width] = completion_log_probs(frozen, part, temperature)
        if models.critic is not None:
            values[index, :width] = critic_values(models, part, states)
        if models.reward is not None:
            scores[index] = completion_scores(models.reward, part)
    processes.add_up(references, values, scores, *(() if said is not None else (log_probs, entropies)))
    return Readings(log_probs, references, entropies, values, scores)


def trunk_states(models: Models, batch: Batch) -> Tensor | None:
    """The policy's last states (N, d) before the N completion tokens where the critic reads them too, else None."""
    return last_states(models.policy, batch, predicting(batch)) if isinstance(models.critic, ValueHead) else None


def critic_values(models: Models, batch: Batch, states: Tensor | None) -> Tensor:
    """Values (B, L) the critic gives the completions: from the trunk's `states` (N, d), or by a pass of its own."""
    assert models.critic is not None
    if states is None:
        return completion_values(models.critic, batch)
    return spread(models.critic(states), batch.completion_mask)


def reference_policy(models: Models) -> AbstractContextManager[nn.Module]:
    """Give the SFT model inside a block: the frozen copy, or the policy without its adapters."""
    return reference(models.policy) if models.reference is None else nullcontext(models.reference)
