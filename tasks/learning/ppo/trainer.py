"""PPO's trainer: it samples rollouts, scores them, and updates policy and critic in several epochs over them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.learning import processes
from tasks.learning.batches import collate, epoch_order
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import ValueHead
from tasks.learning.models.outputs import completion_log_probs, token_outputs
from tasks.learning.ppo.advantages import kl_estimates
from tasks.learning.ppo.missing_eos import SFTAnswers, observe
from tasks.learning.ppo.policy_gradient import Counts, aggregated, policy_loss, value_loss
from tasks.learning.ppo.rewards import by_reward
from tasks.learning.ppo.scoring import (
    PPOModels,
    Rollouts,
    combined_scores,
    critic_values,
    have_ended,
    less_penalties,
    reward_model_scores,
    sampler_matches_training,
    score_rollouts,
    shared_states,
)
from tasks.learning.processes import MicroBatch
from tasks.learning.sampling.engines import answer_in_shares, engine_of
from tasks.learning.sampling.sampler import Response, stop_tokens
from tasks.learning.seeds import seed_for
from tasks.learning.sharding import shard
from tasks.learning.training.gradients import GradientSums
from tasks.learning.training.micro_batches import MicroBatchLimit
from tasks.learning.training.optimisation import (
    LossSums,
    adamw,
    check_finite,
    learning_rate,
    make_accelerator,
    update,
)
from tasks.rewards.cut_answers import cut_answers, cut_answers_sentence
from tasks.settings.params import Params

logger = logging.getLogger(__name__)

NUM_PROBES = 8  # responses on which the sampler's log-probabilities are compared with the training pass
# Names of the policy's losses in the curve, in the order of PolicyLoss.
POLICY_METRICS = ("policy_loss", "approx_kl", "clip_fraction", "ratio_mean", "squared_change")
# The same while the policy is frozen: every ratio is 1, and the whitened advantages have mean 0.
FROZEN_POLICY_METRICS = {**dict.fromkeys(POLICY_METRICS, 0.0), "ratio_mean": 1.0, "grad_norm_policy": 0.0}


class Minibatch(NamedTuple):
    """One optimiser step's share of the rollouts."""

    rows: list[int]  # indices of its rollouts
    iteration: int
    counts: Counts  # over all ranks: what losses are divided by
    kl_coefficient: float  # for grpo, which has its KL penalty in the loss
    last_checkpoint: str  # which checkpoint is saved, as a clause for messages


# From a micro-batch to "loss", whose gradient is taken, and the metrics of the step.
Losses = Callable[[Rollouts, Minibatch], dict[str, Tensor]]


class PPOTrainer:
    """Policy and critic with their optimisers, and the three phases of an iteration: sample, score, update."""

    def __init__(self, models: PPOModels, params: Params) -> None:
        """Prepare to train; policy and critic have an optimiser each, AdamW with epsilon 1e-5."""
        self._models, self._settings, self._seed = models, params.ppo, params.seed
        self._rewards = params.rewards
        self._runtime, self._limit = params.runtime, MicroBatchLimit(params.runtime.max_tokens_per_micro_batch)
        self._accelerator = make_accelerator(params)
        self._stops = stop_tokens(models.policy, models.tokenizer)
        self.trainable_models = {"policy": models.policy}
        if models.critic is not None:
            self.trainable_models["critic"] = models.critic
        for model in self.trainable_models.values():
            if not isinstance(model, ValueHead):  # which is small: every rank has all of it
                shard(model)
        self._engine = engine_of(params.ppo.engine, params.runtime)
        self._as_sampled: bool | None = None  # whether the sampler's log-probabilities are used; None: not known yet
        self._gradients: dict[tuple[str, ...], GradientSums] = {}  # by the names of what is trained together
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: adamw(model, moments=params.runtime.optimiser, seed=params.seed)
            for name, model in self.trainable_models.items()
        }

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all models."""
        return self._models.tokenizer

    @property
    def has_critic(self) -> bool:
        """Whether the estimator needs a critic."""
        return self._models.critic is not None

    def sample(self, prompts: Sequence[list[int]], seed: int) -> list[Response]:
        """Phase 1: sample a response to each prompt from the current policy."""
        policy, settings = self._models.policy, self._settings
        ask = partial(
            self._engine,
            tokenizer=self._models.tokenizer,
            prompts=prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed,
            max_concurrent_sequences=self._runtime.max_concurrent_sequences,
        )
        return answer_in_shares(ask, policy, prompts, by_main=settings.engine == "vllm")

    def reward_scores(
        self, responses: Sequence[Response], of_functions: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Give the scores (B,) of every reward by its name; `of_functions` has those of functions already."""
        model, of_model = self._models.reward, torch.zeros(0)
        if model is not None:
            batch = collate([response.row for response in responses], compute_device(self._models.policy))

            def scored(micro_batches: Sequence[MicroBatch]) -> Tensor:
                return reward_model_scores(model, batch, [each.items for each in micro_batches if each.weight])

            lengths = [response.row.length for response in responses]
            of_model = self._limit.run(range(len(lengths)), lengths, scored)
        return by_reward(self._rewards.training, of_model, of_functions or {})

    def observe(
        self, known: SFTAnswers | None, responses: Sequence[Response], scores: Mapping[str, Tensor]
    ) -> SFTAnswers:
        """Learn from an iteration's responses, scored by name, what `missing_eos_penalty` depends on.

        The first iteration's are the SFT model's: a reward that mainly punishes their being cut is warned of.
        """
        combined = combined_scores(scores, self._settings, self._rewards)
        has_ended = have_ended(responses, self._stops, combined.device)
        found = cut_answers(combined.tolist(), has_ended.tolist()) if known is None else None
        if found and found.is_large and processes.is_main():
            logger.warning("%s", cut_answers_sentence(found, "ppo.max_new_tokens"))
        return observe(known, combined, has_ended)

    def learned_scores(
        self, responses: Sequence[Response], scores: Mapping[str, Tensor], missing_eos_penalty: float
    ) -> Tensor:
        """Give what would be learned from responses, (B,), of which the rewards have given `scores`."""
        combined = combined_scores(scores, self._settings, self._rewards)
        return less_penalties(combined, responses, self._stops, self._settings, missing_eos_penalty)

    def score(
        self,
        responses: Sequence[Response],
        kl_coefficient: float,
        scores: Mapping[str, Tensor] | None = None,
        missing_eos_penalty: float = 0.0,
    ) -> Rollouts:
        """Phase 2: log-probabilities, values, rewards and advantages of the responses.

        The rewards have scored the responses already: `scores`, (B,) each, by name. None: only the model is one.
        """
        scores = self.reward_scores(responses) if scores is None else scores
        lengths = [response.row.length for response in responses]
        # Once for all micro-batches: ranks that differed here would wait for each other for ever.
        as_sampled = self._use_sampled(responses)

        def scored(micro_batches: Sequence[MicroBatch]) -> Rollouts:
            return score_rollouts(
                self._models,
                responses,
                self._stops,
                self._settings,
                self._rewards,
                scores=scores,
                kl_coefficient=kl_coefficient,
                missing_eos_penalty=missing_eos_penalty,
                micro_batches=micro_batches,
                as_sampled=as_sampled,
            )

        return self._limit.run(range(len(lengths)), lengths, scored)

    def update(
        self, rollouts: Rollouts, iteration: int, last_checkpoint: str, kl_coefficient: float = 0.0
    ) -> dict[str, float]:
        """Phase 3: take the optimiser steps of an iteration; returns the means of their metrics.

        Only grpo has its KL penalty, of weight `kl_coefficient`, in the loss; the others have it in the reward.

        Raises:
            InputError: a loss or a gradient norm is not finite; `last_checkpoint` says which checkpoint is saved.
        """
        rate = self._rate(iteration, self._settings.learning_rate)
        steps = list(self.steps(rollouts, iteration, last_checkpoint, kl_coefficient))
        return {**averages(steps or [self._without_a_step]), "learning_rate": rate}

    def steps(
        self, rollouts: Rollouts, iteration: int, last_checkpoint: str, kl_coefficient: float = 0.0
    ) -> Iterator[dict[str, float]]:
        """Take the optimiser steps of an iteration one by one, and yield the metrics of each."""
        settings, lengths = self._settings, rollouts.lengths
        # What was cut has a score of something that was not finished; its tokens teach neither policy nor critic.
        keep = torch.ones_like(rollouts.has_ended) if settings.overlong == "keep" else rollouts.has_ended
        learned_from = keep.cpu()
        seed = seed_for(self._seed, "minibatches", iteration)
        for epoch in range(settings.epochs):
            # Shuffled by seed, iteration and epoch alone, so that a resumed run meets the same minibatches.
            order = torch.tensor(epoch_order(len(lengths), epoch, seed))
            order = order[learned_from[order]]
            approx_kls = []
            # Where few answers are left, a minibatch may have none.
            for part in filter(len, order.tensor_split(settings.num_minibatches)):
                counts = Counts(int(rollouts.mask[part].sum()), len(part), settings.max_new_tokens)
                minibatch = Minibatch(part.tolist(), iteration, counts, kl_coefficient, last_checkpoint)
                # During critic_warmup the curve still has every column.
                metrics = dict(FROZEN_POLICY_METRICS)  # replaced where the policy is trained
                for names, losses in self._objectives(iteration):
                    step = partial(self._step, rollouts, minibatch, names, losses)
                    metrics |= self._limit.run(minibatch.rows, lengths, step)
                approx_kls.append(metrics["approx_kl"])
                yield metrics
            # Whole epochs are skipped, not single steps: every answer of the iteration is learned from equally often.
            if settings.max_update_kl is not None and fmean(approx_kls) > settings.max_update_kl:
                return

    @property
    def _without_a_step(self) -> dict[str, float]:
        """The metrics of an iteration whose answers are all left out of the update."""
        of_critic = ("value_loss", "value_clip_fraction", "grad_norm_critic") if self.has_critic else ()
        return {**FROZEN_POLICY_METRICS, **dict.fromkeys(of_critic, 0.0)}

    def _objectives(self, iteration: int) -> Iterator[tuple[list[str], Losses]]:
        """Yield the models that a step trains together, and their losses."""
        critic, is_warming_up = self._models.critic, iteration <= self._settings.critic_warmup
        if isinstance(critic, ValueHead):
            if is_warming_up:
                yield ["critic"], self._value_head_losses
            else:
                yield ["policy", "critic"], self._shared_losses
            return
        # A critic that knows nothing yet gives advantages that are noise, so the policy waits.
        if not is_warming_up:
            yield ["policy"], self._policy_losses
        if critic is not None:
            yield ["critic"], self._value_losses

    def _step(
        self,
        rollouts: Rollouts,
        minibatch: Minibatch,
        names: Sequence[str],
        losses: Losses,
        micro_batches: Sequence[MicroBatch],
    ) -> dict[str, float]:
        """Take one optimiser step of the named models with the gradient of a loss; returns its metrics."""
        parts = [(rollouts.take(each.items), each.weight) for each in micro_batches]
        for name in names:
            self.optimisers[name].zero_grad()  # an attempt that ran out of memory left a part of a gradient
        sums = LossSums(self._accelerator, self._gradients_of(names))
        for number, (part, weight) in enumerate(parts, start=1):
            sums.backward(losses(part, minibatch), weight, is_last=number == len(parts))
        metrics = sums.over_ranks()
        loss = metrics.pop("loss")
        check_finite(minibatch.iteration, {f"loss of the {names[0]}": loss}, minibatch.last_checkpoint)
        return {f"grad_norm_{name}": self._update(name, minibatch, loss) for name in names} | metrics

    def _gradients_of(self, names: Sequence[str]) -> GradientSums:
        """The sums of gradients of the models that a loss trains together."""
        if (*names,) not in self._gradients:
            models = [self.trainable_models[name] for name in names]
            self._gradients[(*names,)] = GradientSums(weight for model in models for weight in model.parameters())
        return self._gradients[(*names,)]

    def _policy_losses(self, part: Rollouts, minibatch: Minibatch, states: Tensor | None = None) -> dict[str, Tensor]:
        settings, policy = self._settings, self._models.policy
        bonus: Tensor | float
        if settings.entropy_bonus:
            log_probs, entropies, _ = token_outputs(policy, part.batch, settings.temperature, states)
            # Entropies need the whole distribution of every token: computed only where they have a weight.
            mean_entropy = aggregated(entropies, part.mask, settings.aggregation, minibatch.counts)
            bonus = settings.entropy_bonus * mean_entropy
        else:
            log_probs, bonus = completion_log_probs(policy, part.batch, settings.temperature, states), 0.0
        found = policy_loss(
            log_probs,
            part.log_probs,
            part.advantages,
            part.mask,
            counts=minibatch.counts,
            clip=settings.clip,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            kind=settings.policy_loss,
            aggregation=settings.aggregation,
        )
        # Subtracted: the loss is minimised, and entropy keeps the policy exploring.
        loss = found.loss - bonus
        if settings.estimator == "grpo":
            kl = kl_estimates(log_probs, part.reference_log_probs, part.mask, settings.kl_estimator)
            mean_kl = aggregated(kl, part.mask, settings.aggregation, minibatch.counts)
            loss = loss + minibatch.kl_coefficient * mean_kl
        return {"loss": loss, **dict(zip(POLICY_METRICS, found, strict=True))}

    def _value_losses(self, part: Rollouts, minibatch: Minibatch, states: Tensor | None = None) -> dict[str, Tensor]:
        values = critic_values(self._models, part.batch, states)
        found = value_loss(
            values,
            part.values,
            part.returns,
            part.mask,
            token_count=minibatch.counts.tokens,
            clip=self._settings.value_clip,
        )
        return {"loss": found.loss, "value_loss": found.loss, "value_clip_fraction": found.clip_fraction}

    def _shared_losses(self, part: Rollouts, minibatch: Minibatch) -> dict[str, Tensor]:
        """The losses of policy and value head, from one forward pass through the shared backbone."""
        states = shared_states(self._models, part.batch)
        policy, value = self._policy_losses(part, minibatch, states), self._value_losses(part, minibatch, states)
        # One backward pass for both: two would walk through the shared backbone twice.
        return {**value, **policy, "loss": policy["loss"] + self._settings.value_weight * value["loss"]}

    def _value_head_losses(self, part: Rollouts, minibatch: Minibatch) -> dict[str, Tensor]:
        """The loss of the value head alone, weighted as beside the policy's loss; the shared backbone is frozen."""
        with torch.no_grad():
            states = shared_states(self._models, part.batch)
        value = self._value_losses(part, minibatch, states)
        # Weighted as it will be later, so that AdamW's moments are of the right size when the backbone joins.
        return {**value, "loss": self._settings.value_weight * value["loss"]}

    def _use_sampled(self, responses: Sequence[Response]) -> bool:
        """Whether the sampler's log-probabilities and entropies are as good as those of a forward pass.

        In bf16 they are not, for the sampler rounds otherwise: the ratio of a first step would not be 1.
        """
        if self._as_sampled is None:
            self._as_sampled = self._runtime.precision != "bf16" and responses[0].entropies is not None
            if self._as_sampled:
                self._as_sampled = sampler_matches_training(
                    self._models.policy, responses[:NUM_PROBES], self._settings.temperature
                )
                if not self._as_sampled:
                    logger.warning("the sampler's log-probabilities differ from those of the training pass: recomputed")
        return self._as_sampled

    def _update(self, name: str, minibatch: Minibatch, loss: float) -> float:
        """Take an optimiser step of one model; returns the norm of the gradient before clipping."""
        settings = self._settings
        peak_rate = settings.critic_learning_rate if name == "critic" else settings.learning_rate
        return update(
            self._accelerator,
            self.trainable_models[name],
            self.optimisers[name],
            step=minibatch.iteration,
            loss=loss,
            learning_rate=self._rate(minibatch.iteration, peak_rate),
            max_grad_norm=settings.max_grad_norm,
            last_checkpoint=minibatch.last_checkpoint,
        )

    def _rate(self, iteration: int, peak: float) -> float:
        return learning_rate(iteration, self._settings.iterations, peak, self._settings.schedule)


def averages(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the metrics of optimiser steps, and turn the mean square of (ratio - 1) into the ratio's variance."""
    means = {name: fmean(step[name] for step in steps) for name in steps[0]}
    spread = means.pop("squared_change") - (means["ratio_mean"] - 1.0) ** 2
    return {**means, "ratio_var": max(spread, 0.0)}
