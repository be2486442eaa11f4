"""The methods that align a policy."""

from typing import Annotated

from pydantic import Field, model_validator

from tasks.methods import MethodName, StageName
from tasks.settings.choices import (
    Aggregation,
    Critic,
    Engine,
    Estimator,
    KLEstimator,
    Overlong,
    PolicyLossName,
    PreferenceLoss,
    RatedLoss,
    RolloutCorrection,
    Schedule,
)
from tasks.settings.section import Count, Held, NotNegative, Positive, Section, Share
from tasks.settings.training import Training


class Align(Section):
    """Which algorithm aligns the policy."""

    method: MethodName
    stage: StageName


class MethodSettings(Section):
    """What the settings of every method hold."""

    evaluation_points: Annotated[int, Field(ge=0, le=10**6)]
    evaluation_prompts: Held | None
    max_new_tokens: Count


class Dpo(Training, MethodSettings):
    """Direct preference optimisation."""

    loss: PreferenceLoss
    beta: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    nll_weight: NotNegative
    simpo_gamma: float

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Dpo":
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing would be ignored by the loss {self.loss}: set it to 0")
        return self


class Kto(Training, MethodSettings):
    """Kahneman-Tversky optimisation."""

    loss: RatedLoss
    beta: Positive
    desirable_weight: Positive
    undesirable_weight: Positive


class Ppo(MethodSettings):
    """Proximal policy optimisation."""

    estimator: Estimator
    critic: Critic
    engine: Engine
    iterations: Count
    rollouts: Held
    responses_per_prompt: Held
    dynamic_sampling: Count | None
    epochs: Count
    num_minibatches: Count
    temperature: Positive
    learning_rate: Positive
    critic_learning_rate: Positive
    critic_warmup: Annotated[int, Field(ge=0)]
    schedule: Schedule
    max_grad_norm: Positive
    kl_coefficient: NotNegative
    kl_estimator: KLEstimator
    kl_target: Positive | None
    kl_horizon: Count
    gamma: Share
    gae_lambda: Share
    grpo_divide_by_std: bool
    policy_loss: PolicyLossName
    aggregation: Aggregation
    clip: Positive
    clip_high: Positive | None
    value_clip: Positive
    value_weight: Positive
    dual_clip: Annotated[float, Field(gt=1)] | None
    entropy_bonus: NotNegative
    score_clip: Positive | None
    missing_eos_penalty: NotNegative
    overlong: Overlong
    overlong_buffer: Count | None
    whiten_rewards: bool
    reward_smoothing: Annotated[float, Field(gt=0, le=1)]
    max_update_kl: Positive | None
    rollout_correction: RolloutCorrection
    rollout_correction_cap: Annotated[float, Field(gt=1)]
    max_rollout_kl: Positive | None

    @property
    def is_grouped(self) -> bool:
        """Whether the other answers to a prompt are an answer's yardstick."""
        return self.estimator in ("rloo", "grpo", "reinforce_plus_plus_baseline")

    @model_validator(mode="after")
    def _rounds_are_filled(self) -> "Ppo":
        if self.num_minibatches > self.rollouts:
            raise ValueError("num_minibatches must not exceed rollouts")
        if self.rollouts % self.responses_per_prompt:
            raise ValueError(
                "rollouts must be a multiple of responses_per_prompt: whole groups of answers to one prompt"
            )
        if self.is_grouped and self.responses_per_prompt < 2:
            raise ValueError(
                f"the estimator {self.estimator} compares answers to one prompt: raise responses_per_prompt to 2"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Ppo":
        if self.max_update_kl is not None and self.epochs == 1:
            raise ValueError(
                "max_update_kl ends an iteration's further epochs, and there is one only: raise epochs or null it"
            )
        if self.estimator != "gae" and self.critic_warmup:
            raise ValueError(f"the estimator {self.estimator} has no critic to warm up: set critic_warmup to 0")
        if self.estimator != "gae" and self.critic == "shared":
            raise ValueError(
                f"the estimator {self.estimator} has no critic that could share a backbone: set critic to separate"
            )
        if self.is_grouped and (self.gamma, self.reward_smoothing, self.whiten_rewards) != (1, 1, False):
            raise ValueError(
                f"the estimator {self.estimator} takes an answer's reward as a whole: "
                "set gamma and reward_smoothing to 1 and whiten_rewards to false"
            )
        if self.estimator == "grpo" and self.kl_estimator == "k1":
            raise ValueError("k1 has no gradient in the loss, where grpo has its KL: set kl_estimator to k2 or k3")
        if self.estimator != "grpo" and not self.grpo_divide_by_std:
            raise ValueError(
                f"the estimator {self.estimator} does not divide by a group's deviation: set grpo_divide_by_std to true"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_what_is_learned_from(self) -> "Ppo":
        if self.dynamic_sampling is not None and not self.is_grouped:
            raise ValueError(
                f"dynamic_sampling drops prompts whose answers all earn the same, but the estimator {self.estimator} "
                "learns from them, too: set it to null"
            )
        return self

    @model_validator(mode="after")
    def _loss_has_what_it_needs(self) -> "Ppo":
        if self.policy_loss == "gspo" and not self.is_grouped:
            raise ValueError(
                f"gspo has one ratio for an answer and needs one advantage for it, but the estimator {self.estimator} "
                "has one for each token: set estimator to grpo, rloo or reinforce_plus_plus_baseline"
            )
        if self.policy_loss == "gspo" and self.aggregation != "sequence":
            raise ValueError("the loss gspo is a mean over answers: set aggregation to sequence")
        if self.policy_loss == "cispo" and self.dual_clip is not None:
            raise ValueError("the loss cispo bounds every ratio and would ignore dual_clip: set it to null")
        if self.overlong == "mask" and self.missing_eos_penalty:
            raise ValueError(
                "overlong: mask leaves answers without an end out of the update: set missing_eos_penalty to 0"
            )
        if self.overlong_buffer is not None and self.overlong_buffer > self.max_new_tokens:
            raise ValueError("overlong_buffer must not exceed max_new_tokens, of which it is the end")
        return self


class Methods(Section):
    """A section for each stage of alignment; the one that `align.stage` names is used."""

    dpo: Dpo
    kto: Kto
    ppo: Ppo
