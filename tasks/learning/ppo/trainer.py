"""The update phase of PPO: clipped steps of the policy and of the critic, several passes over one round's rollouts."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.learning import processes
from tasks.learning.batches import epoch_order
from tasks.learning.models.loading import ValueHead
from tasks.learning.models.outputs import completion_log_probs, token_statistics
from tasks.learning.ppo.advantages import kl_estimates
from tasks.learning.ppo.policy_gradient import policy_loss, value_loss
from tasks.learning.ppo.scoring import Models, Rollouts, critic_values, judge, sampled_as_trained, trunk_states
from tasks.learning.processes import Pass
from tasks.learning.sampling.engines import answer_in_shares, engine_of
from tasks.learning.sampling.sampler import Response, stop_tokens
from tasks.learning.seeds import seed_for
from tasks.learning.sharding import shard, together
from tasks.learning.training.micro_batches import Budget
from tasks.learning.training.optimisation import adamw, check_finite, learning_rate, make_accelerator, update
from tasks.settings.params import Params

logger = logging.getLogger(__name__)

TRIED_OUT = 8  # responses on which the sampler's log-probabilities are compared with the training pass
# What the policy's losses are called in the curve, in the order of PolicyLoss.
POLICY_FIGURES = ("policy_loss", "approx_kl", "clip_fraction", "ratio_mean", "squared_change")
# The same while the policy stands still: every ratio is 1, and the whitened advantages have mean 0.
UNMOVED_POLICY = {**dict.fromkeys(POLICY_FIGURES, 0.0), "ratio_mean": 1.0, "grad_norm_policy": 0.0}


class Step(NamedTuple):
    """What a step of the policy and one of the critic share."""

    iteration: int
    token_count: int  # response tokens of the minibatch
    kept: str  # which checkpoint there is
    kl_coefficient: float  # of grpo, which has its KL in the loss


# From a part of a minibatch to "loss", whose gradient is followed, and the step's figures.
Losses = Callable[[Rollouts, Step], dict[str, Tensor]]


class Learner:
    """The policy and the critic with their optimisers, and the three phases of a round."""

    def __init__(self, models: Models, params: Params) -> None:
        """Prepare to train; policy and critic have an optimiser each, AdamW with epsilon 1e-5."""
        self._models, self._settings, self._seed = models, params.ppo, params.seed
        self._rewards = params.rewards.training
        self._runtime, self._budget = params.runtime, Budget(params.runtime.max_tokens_per_micro_batch)
        self._accelerator = make_accelerator(params)
        self._stops = stop_tokens(models.policy, models.tokenizer)
        self.models_that_learn = {"policy": models.policy}
        if models.critic is not None:
            self.models_that_learn["critic"] = models.critic
        for model in self.models_that_learn.values():
            if not isinstance(model, ValueHead):  # which is small, and whole in every process
                shard(model)
        self._engine = engine_of(params.ppo.engine)
        self._as_sampled: bool | None = None  # None: not tried out yet
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: adamw(model) for name, model in self.models_that_learn.items()
        }

    def sample(self, prompts: Sequence[list[int]], seed: int) -> list[Response]:
        """Phase 1: answer the prompts with the policy as it is."""
        policy, settings = self._models.policy, self._settings
        ask = partial(
            self._engine,
            policy,
            self._models.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed,
            max_concurrent_sequences=self._runtime.max_concurrent_sequences,
        )
        return answer_in_shares(ask, policy, prompts)

    def judge(
        self, responses: Sequence[Response], kl_coefficient: float, of_functions: Mapping[str, Tensor] | None = None
    ) -> Rollouts:
        """Phase 2: log-probabilities, values, scores, rewards and advantages.

        The rewards that are functions have scored the responses already: `of_functions`, (B,) each, by name.
        """
        lengths = [response.row.length for response in responses]
        as_sampled = self._is_as_sampled(responses)

        def judged(passes: Sequence[Pass]) -> Rollouts:
            with self._accelerator.autocast(), together(self._models.policy, self._models.critic):
                return judge(
                    self._models,
                    responses,
                    self._stops,
                    self._settings,
                    self._rewards,
                    of_functions=of_functions or {},
                    kl_coefficient=kl_coefficient,
                    groups=[each.items for each in passes if each.weight],
                    as_sampled=as_sampled,
                )

        return self._budget.spend(range(len(lengths)), lengths, judged)

    def update(self, rollouts: Rollouts, iteration: int, kept: str, kl_coefficient: float = 0.0) -> dict[str, float]:
        """Phase 3: learn from a round, several times over; returns the means over its optimiser steps.

        Only grpo has its KL penalty, of weight `kl_coefficient`, in the loss; the other estimators' rewards hold it.

        Raises:
            InputError: a loss or a gradient norm is not finite; `kept` says which checkpoint there is.
        """
        rate = self._rate(iteration, self._settings.learning_rate)
        return {**averages(list(self.steps(rollouts, iteration, kept, kl_coefficient))), "learning_rate": rate}

    def steps(
        self, rollouts: Rollouts, iteration: int, kept: str, kl_coefficient: float = 0.0
    ) -> Iterator[dict[str, float]]:
        """Take the optimiser steps of a round one by one, and give the figures of each."""
        settings, lengths = self._settings, rollouts.lengths
        seed = seed_for(self._seed, "minibatches", iteration)
        for epoch in range(settings.epochs):
            order = epoch_order(len(lengths), epoch, seed)
            change = []
            for minibatch in torch.tensor(order).tensor_split(settings.num_minibatches):
                rows: list[int] = minibatch.tolist()
                step = Step(iteration, int(rollouts.mask[minibatch].sum()), kept, kl_coefficient)
                figures = dict(UNMOVED_POLICY)  # until it moves
                for names, losses in self._objectives(step):
                    figures |= self._budget.spend(rows, lengths, partial(self._descend, rollouts, step, names, losses))
                change.append(figures["approx_kl"])
                yield figures
            if settings.max_update_kl is not None and fmean(change) > settings.max_update_kl:
                return

    def _objectives(self, step: Step) -> Iterator[tuple[list[str], Losses]]:
        """Give what learns in a step: networks, and the losses whose gradient moves them."""
        critic, is_warming_up = self._models.critic, step.iteration <= self._settings.critic_warmup
        if isinstance(critic, ValueHead):
            yield (["critic"], self._head_losses) if is_warming_up else (["policy", "critic"], self._trunk_losses)
            return
        if not is_warming_up:
            yield ["policy"], self._policy_losses
        if critic is not None:
            yield ["critic"], self._value_losses

    def _descend(
        self, rollouts: Rollouts, step: Step, names: Sequence[str], losses: Losses, passes: Sequence[Pass]
    ) -> dict[str, float]:
        """Take one optimiser step of some networks down the gradient of a loss; returns its figures."""
        parts = [(rollouts.take(each.items), each.weight) for each in passes]
        for name in names:
            self.optimisers[name].zero_grad()  # an attempt that ran out of memory left a part of a gradient
        sums: dict[str, float] = {}
        for part, weight in parts:
            found = losses(part, step)
            self._accelerator.backward(weight * found["loss"])
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + weight * value.item()
        sums = processes.summed(sums)
        loss = sums.pop("loss")
        check_finite(step.iteration, {f"loss of the {names[0]}": loss}, step.kept)
        return {f"grad_norm_{name}": self._move(name, step, loss) for name in names} | sums

    def _policy_losses(self, part: Rollouts, step: Step, states: Tensor | None = None) -> dict[str, Tensor]:
        settings, policy = self._settings, self._models.policy
        bonus: Tensor | float
        with self._accelerator.autocast():
            if settings.entropy_bonus:
                log_probs, entropies, _ = token_statistics(policy, part.batch, settings.temperature, states)
                bonus = settings.entropy_bonus * entropies.sum() / step.token_count
            else:
                log_probs, bonus = completion_log_probs(policy, part.batch, settings.temperature, states), 0.0
        found = policy_loss(
            log_probs,
            part.log_probs,
            part.advantages,
            part.mask,
            token_count=step.token_count,
            clip=settings.clip,
            dual_clip=settings.dual_clip,
        )
        loss = found.loss - bonus
        if settings.estimator == "grpo":
            kl = kl_estimates(log_probs, part.reference_log_probs, part.mask, settings.kl_estimator)
            loss = loss + step.kl_coefficient * kl.sum() / step.token_count
        return {"loss": loss, **dict(zip(POLICY_FIGURES, found, strict=True))}

    def _value_losses(self, part: Rollouts, step: Step, states: Tensor | None = None) -> dict[str, Tensor]:
        with self._accelerator.autocast():
            values = critic_values(self._models, part.batch, states)
        found = value_loss(
            values,
            part.values,
            part.returns,
            part.mask,
            token_count=step.token_count,
            clip=self._settings.value_clip,
        )
        return {"loss": found.loss, "value_loss": found.loss, "value_clip_fraction": found.clip_fraction}

    def _trunk_losses(self, part: Rollouts, step: Step) -> dict[str, Tensor]:
        """The losses of policy and value head, of one pass through the trunk and with one gradient."""
        with self._accelerator.autocast():
            states = trunk_states(self._models, part.batch)
        policy, value = self._policy_losses(part, step, states), self._value_losses(part, step, states)
        return {**value, **policy, "loss": policy["loss"] + self._settings.value_weight * value["loss"]}

    def _head_losses(self, part: Rollouts, step: Step) -> dict[str, Tensor]:
        """The loss of the value head alone, as large as it is beside the policy's: the trunk stands still."""
        with torch.no_grad(), self._accelerator.autocast():
            states = trunk_states(self._models, part.batch)
        value = self._value_losses(part, step, states)
        return {**value, "loss": self._settings.value_weight * value["loss"]}

    def _is_as_sampled(self, responses: Sequence[Response]) -> bool:
        if self._as_sampled is None:
            few = responses[:TRIED_OUT]
            with together(self._models.policy):
                agrees = sampled_as_trained(self._models.policy, few, self._settings.temperature)
            if not agrees:
                logger.warning("the sampler's log-probabilities are not those of the training pass: computed anew")
            says_all = all(response.entropies is not None for response in few)
            # The ratio of a first step is 1 only if both its sides were computed in the same precision.
            self._as_sampled = agrees and says_all and self._runtime.precision == "fp32"
        return self._as_sampled

    def _move(self, name: str, step: Step, loss: float) -> float:
        """One optimiser step; returns the norm of the gradient before clipping."""
        settings = self._settings
        peak_rate = settings.critic_learning_rate if name == "critic" else settings.learning_rate
        return update(
            self._accelerator,
            self.models_that_learn[name],
            self.optimisers[name],
            step=step.iteration,
            loss=loss,
            learning_rate=self._rate(step.iteration, peak_rate),
            max_grad_norm=settings.max_grad_norm,
            kept=step.kept,
        )

    def _rate(self, iteration: int, peak: float) -> float:
        return learning_rate(iteration, self._settings.iterations, peak, self._settings.schedule)


def averages(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the figures of optimiser steps, and turn the mean square of (ratio - 1) into the ratio's variance."""
    means = {name: fmean(step[name] for step in steps) for name in steps[0]}
    spread = means.pop("squared_change") - (means["ratio_mean"] - 1.0) ** 2
    return {**means, "ratio_var": max(spread, 0.0)}
