"""Scoring rollouts: the outputs of policy, reference, critic and reward model, and advantages from them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.learning import processes
from tasks.learning.batches import Batch, collate
from tasks.learning.models.forward import compute_device, last_states, predicting
from tasks.learning.models.loading import ValueHead, reference
from tasks.learning.models.outputs import (
    completion_log_probs,
    completion_scores,
    completion_values,
    spread,
    token_outputs,
)
from tasks.learning.ppo.advantages import (
    Advantages,
    centred_in_groups,
    estimate_advantages,
    kl_estimates,
    leave_one_out,
    overlong_penalties,
    rewards_to_go,
    shaped_rewards,
    smoothed_rewards,
    standardised_in_groups,
    whiten,
)
from tasks.learning.ppo.rewards import normalised_sum, weighted_sum
from tasks.learning.ppo.rollout_correction import correction_weights
from tasks.learning.processes import MicroBatch
from tasks.learning.sampling.sampler import Response
from tasks.settings.params import Ppo, Rewards

# Nats by which two fp32 passes over a token may differ: rounding is a hundred times smaller, an error larger.
LARGEST_SAMPLING_ERROR = 1e-4


class PPOModels(NamedTuple):
    """The four models of PPO, and the tokenizer they share."""

    tokenizer: PreTrainedTokenizerBase
    policy: nn.Module
    reference: PreTrainedModel | None  # None: the policy with its adapters switched off
    critic: nn.Module | None  # None: the estimator has none; a ValueHead: it shares the policy's backbone
    reward: nn.Module | None  # a model or an ensemble; None: PPO learns from functions alone


class ModelOutputs(NamedTuple):
    """Outputs of the models for B responses in L columns; token fields are 0 outside the response."""

    log_probs: Tensor  # (B, L) under the policy that sampled, at the sampling temperature
    reference_log_probs: Tensor  # (B, L) under the reference, at the same temperature
    entropies: Tensor  # (B, L) nats, of the distribution each token was drawn from
    values: Tensor  # (B, L) the critic's V(prompt, tokens before t), in the column of token t


class Rollouts(NamedTuple):
    """The rollouts of one iteration: B responses, each behind its prompt, in L columns padded on the right.

    | field               | shape       | what                                                               |
    |---------------------|-------------|--------------------------------------------------------------------|
    | batch               | 3 x (B, L)  | token ids, attention mask, completion mask (the response's tokens)  |
    | log_probs           | (B, L)      | under the policy that sampled, at the sampling temperature          |
    | sampled_log_probs   | (B, L)      | as the sampler gave them; None: they are the log_probs              |
    | reference_log_probs | (B, L)      | under the reference, at the same temperature                        |
    | entropies           | (B, L)      | nats, of the distribution each token was drawn from                 |
    | values              | (B, L)      | critic before the update; 0 without one                             |
    | advantages          | (B, L)      | whitened, or computed within groups; times the rollout correction   |
    | returns             | (B, L)      | targets of the critic, not whitened                                 |
    | scores              | (B,)        | weighted sum of the rewards: before clip, penalty, KL and smoothing |
    | learned_scores      | (B,)        | what is learned from: combined, clipped, less penalties             |
    | has_ended           | (B,) bool   | the response ended with a stop token                                |
    | by_reward           | names: (B,) | scores of each reward, before its weight                            |

    Token fields are 0 outside the completion mask.
    """

    batch: Batch
    log_probs: Tensor
    sampled_log_probs: Tensor | None
    reference_log_probs: Tensor
    entropies: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor
    learned_scores: Tensor
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


def score_rollouts(
    models: PPOModels,
    responses: Sequence[Response],
    stops: Sequence[int],
    settings: Ppo,
    rewards: Rewards,
    *,
    scores: Mapping[str, Tensor],
    kl_coefficient: float,
    missing_eos_penalty: float,
    micro_batches: Sequence[MicroBatch],
    as_sampled: bool,
) -> Rollouts:
    """Compute the outputs of all models for responses, and advantages from the scores of all rewards.

    Args:
        models: all on one device.
        responses: sampled from the policy.
        stops: ids that end a response.
        settings: of PPO.
        rewards: what is learned from.
        scores: (B,) of each reward, by name.
        kl_coefficient: weight of the KL penalty in this iteration.
        missing_eos_penalty: what an answer without an end costs.
        micro_batches: of this rank, of the responses.
        as_sampled: take the policy's log-probabilities and entropies from the responses, not from a forward pass.
    """
    rows = [response.row for response in responses]
    batch = collate(rows, compute_device(models.policy))
    outputs = model_outputs(models, batch, settings.temperature, micro_batches, responses if as_sampled else None)
    combined = combined_scores(scores, settings, rewards)
    learned = less_penalties(combined, responses, stops, settings, missing_eos_penalty)
    of_tokens = token_rewards(outputs, learned, batch.completion_mask, settings, kl_coefficient)
    # A sum of normalised rewards is not normalised again.
    divide_by_std = settings.grpo_divide_by_std and rewards.combine == "sum"
    advantages, returns = advantages_of(
        of_tokens, outputs.values, batch.completion_mask, settings, divide_by_std=divide_by_std
    )
    sampled = None if as_sampled else sampled_log_probs(responses, batch)
    if sampled is not None:
        kind, cap = settings.rollout_correction, settings.rollout_correction_cap
        # A weight of a token's loss is one of its advantage: every loss is proportional to it, and no weight negative.
        advantages = advantages * correction_weights(outputs.log_probs - sampled, batch.completion_mask, kind, cap)
    return Rollouts(
        batch=batch,
        log_probs=outputs.log_probs,
        sampled_log_probs=sampled,
        reference_log_probs=outputs.reference_log_probs,
        entropies=outputs.entropies,
        values=outputs.values,
        advantages=advantages,
        returns=returns,
        scores=weighted_sum(rewards.training, scores),
        learned_scores=learned,
        has_ended=have_ended(responses, stops, learned.device),
        by_reward=dict(scores),
    )


def combined_scores(scores: Mapping[str, Tensor], settings: Ppo, rewards: Rewards) -> Tensor:
    """Combine the scores of all rewards, (B,) each by name, and clip the result, (B,).

    Those to one prompt are neighbours.
    """
    if rewards.combine == "sum":
        found = weighted_sum(rewards.training, scores)
    else:
        found = normalised_sum(rewards.training, scores, settings.responses_per_prompt)
    if settings.score_clip is None:
        return found
    # Of the sum, for training only: what is reported stays as the rewards gave it.
    return found.clamp(-settings.score_clip, settings.score_clip)


def less_penalties(
    combined: Tensor,
    responses: Sequence[Response],
    stops: Sequence[int],
    settings: Ppo,
    missing_eos_penalty: float,
) -> Tensor:
    """Subtract what the answers' ends cost from their combined scores.

    Args:
        combined: (B,), clipped.
        responses: B.
        stops: ids that end a response.
        settings: of PPO.
        missing_eos_penalty: what an answer without an end costs.

    Returns:
        (B,), what is learned from.
    """
    # After the clip, or a cut answer with a very low score would not be worse than one that ended.
    found = combined - missing_eos_penalty * ~have_ended(responses, stops, combined.device)
    if settings.overlong_buffer is not None:
        lengths = torch.tensor([len(response.row.completion) for response in responses], device=found.device)
        found = found + overlong_penalties(lengths, settings.max_new_tokens, settings.overlong_buffer)
    return found


def have_ended(responses: Sequence[Response], stops: Sequence[int], device: torch.device) -> Tensor:
    """Whether each response ended with a stop token, (B,) bool."""
    # By the last token's id and not by length: an answer may end exactly at the limit.
    return torch.tensor([response.row.completion[-1] in stops for response in responses], device=device)


def token_rewards(outputs: ModelOutputs, scores: Tensor, mask: Tensor, settings: Ppo, kl_coefficient: float) -> Tensor:
    """Give the last token the score, add the KL penalty, then smooth and whiten if the settings say so.

    Args:
        outputs: of B responses.
        scores: (B,) to learn from.
        mask: (B, L) bool, the response's tokens.
        settings: of PPO.
        kl_coefficient: weight of the KL penalty.

    Returns:
        (B, L) rewards.
    """
    kl = kl_estimates(outputs.log_probs, outputs.reference_log_probs, mask, settings.kl_estimator)
    in_reward = 0.0 if settings.estimator == "grpo" else kl_coefficient  # grpo has it in the loss
    # KL in the reward, not in the loss: there k1 has the exact gradient of KL(policy || reference).
    rewards = shaped_rewards(scores, kl, mask, in_reward)
    if settings.reward_smoothing < 1:
        rewards = smoothed_rewards(rewards, mask, settings.reward_smoothing)
    # The mean stays: a shifted reward would pay for, or punish, every further token.
    return whiten(rewards, mask, keep_mean=True) if settings.whiten_rewards else rewards


def advantages_of(
    rewards: Tensor, values: Tensor, mask: Tensor, settings: Ppo, *, divide_by_std: bool = True
) -> Advantages:
    """Turn the rewards of tokens into advantages by the estimator of the settings.

    Args:
        rewards: (B, L); responses to one prompt are neighbours.
        values: (B, L) of the critic.
        mask: (B, L) bool, the responses' tokens.
        settings: of PPO.
        divide_by_std: of grpo: the rewards have not been divided by a deviation yet, and are to be.

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
            in_groups = standardised_in_groups if divide_by_std else centred_in_groups
            of_responses = in_groups(rewards.sum(dim=1), settings.responses_per_prompt)
        case "reinforce_plus_plus_baseline":
            of_responses = centred_in_groups(rewards.sum(dim=1), settings.responses_per_prompt)
    # An answer has one advantage, that of all its tokens. Nothing learns from the returns: there is no critic.
    of_tokens = torch.where(mask, of_responses[:, None], 0.0)
    if settings.estimator == "reinforce_plus_plus_baseline":
        of_tokens = whiten(of_tokens, mask)
    return Advantages(of_tokens, rewards_to_go(rewards, mask, gamma=1.0))


def sampled_log_probs(responses: Sequence[Response], batch: Batch) -> Tensor:
    """Lay the log-probabilities that the sampler gave on the places of a batch's completions, (B, L)."""
    return spread(torch.cat([each.log_probs for each in responses]), batch.completion_mask)


@torch.no_grad()
def sampler_matches_training(policy: nn.Module, responses: Sequence[Response], temperature: float) -> bool:
    """Whether the log-probabilities of the sampler are those of the policy's training pass."""
    batch = collate([response.row for response in responses], compute_device(policy))
    expected = completion_log_probs(policy, batch, temperature)[batch.completion_mask]
    sampled = torch.cat([response.log_probs for response in responses])
    return bool((expected - sampled).abs().max() <= LARGEST_SAMPLING_ERROR)


@torch.no_grad()
def model_outputs(
    models: PPOModels,
    batch: Batch,
    temperature: float,
    micro_batches: Sequence[MicroBatch],
    sampled: Sequence[Response] | None,
) -> ModelOutputs:
    """Run the models over the rows of a batch, with the forward passes of training; all ranks take part.

    Args:
        models: all on one device.
        batch: B rows in L columns.
        temperature: of sampling.
        micro_batches: of this rank; where models are sharded, as many as the others have.
        sampled: the responses, if their log-probabilities and entropies are to be used; None: compute them.
    """
    shape = batch.input_ids.shape
    log_probs, references, entropies, values = (torch.zeros(shape, device=batch.input_ids.device) for _ in range(4))
    if sampled is not None:
        log_probs = sampled_log_probs(sampled, batch)
        known = [each.entropies for each in sampled if each.entropies is not None]
        entropies = spread(torch.cat(known), batch.completion_mask)
    for rows, weight in micro_batches:
        index = torch.tensor(rows, device=batch.input_ids.device)
        part = batch.take(rows)
        found: list[tuple[Tensor, Tensor]] = []  # of all rows, and of these
        # One pass through the backbone serves the log-probabilities and a shared critic's values.
        states = shared_states(models, part)
        if sampled is None:
            tokens = token_outputs(models.policy, part, temperature, states)
            found += [(log_probs, tokens.log_probs), (entropies, tokens.entropies)]
        with reference_policy(models) as frozen:
            found.append((references, completion_log_probs(frozen, part, temperature)))
        if models.critic is not None:
            found.append((values, critic_values(models, part, states)))
        for of_all, of_part in found if weight else ():  # 0: it keeps this rank in step, and its rows are another's
            of_all[index, : of_part.shape[1]] = of_part
    # Each rank filled its own rows and left zeros elsewhere, so the sum is the whole.
    processes.all_reduce(references, values, *(() if sampled is not None else (log_probs, entropies)))
    return ModelOutputs(log_probs, references, entropies, values)


@torch.no_grad()
def reward_model_scores(model: nn.Module, batch: Batch, micro_batches: Sequence[Sequence[int]]) -> Tensor:
    """Score B rows on the model's normalised scale, (B,); micro-batches as in `model_outputs`, all ranks take part."""
    scores = torch.zeros(len(batch.input_ids), device=batch.input_ids.device)
    for rows in micro_batches:
        scores[torch.tensor(rows, device=scores.device)] = completion_scores(model, batch.take(rows))
    processes.all_reduce(scores)
    return scores


def shared_states(models: PPOModels, batch: Batch) -> Tensor | None:
    """The backbone's last states (N, d) before the N completion tokens if policy and critic share it, else None."""
    return last_states(models.policy, batch, predicting(batch)) if isinstance(models.critic, ValueHead) else None


def critic_values(models: PPOModels, batch: Batch, states: Tensor | None) -> Tensor:
    """Values (B, L) of the completions' tokens: from the shared `states` (N, d), else by its own forward pass."""
    assert models.critic is not None
    if states is None:
        return completion_values(models.critic, batch)
    return spread(models.critic(states), batch.completion_mask)


def reference_policy(models: PPOModels) -> AbstractContextManager[nn.Module]:
    """Give the SFT model inside a block: the frozen copy, or the policy without its adapters."""
    return reference(models.policy) if models.reference is None else nullcontext(models.reference)
