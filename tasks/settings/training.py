"""Supervised training: fine-tuning and the reward models."""

from typing import Annotated

from pydantic import Field, model_validator

from tasks.settings.choices import HeadInit, Pooling, Schedule
from tasks.settings.section import Count, Held, NotNegative, Positive, Section, Share


class Training(Section):
    """What every supervised trainer needs."""

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup_ratio: Share
    schedule: Schedule
    weight_decay: NotNegative
    max_grad_norm: Positive


class Sft(Training):
    """Supervised fine-tuning."""


class Reward(Training):
    """The reward model."""

    epochs: Annotated[int, Field(ge=0, le=10**9)]
    pooling: Pooling
    head_init: HeadInit
    head_l2: Positive | None
    head_learning_rate: Positive | None
    early_stopping: Count | None
    ensemble: Held
    ensemble_penalty: NotNegative
    margin: NotNegative
    strength_margin: NotNegative
    centering: NotNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]

    @model_validator(mode="after")
    def _something_is_learned(self) -> "Reward":
        if self.epochs == 0 and self.head_init != "fit":
            raise ValueError(
                "epochs is 0, which leaves the head as it starts, and it starts at random: set head_init to fit, or "
                "epochs to 1 or more"
            )
        return self

    @model_validator(mode="after")
    def _something_differs(self) -> "Reward":
        if self.ensemble == 1 and self.ensemble_penalty > 0:
            raise ValueError(
                "ensemble_penalty is on the deviation of several models, but ensemble is 1: set ensemble to 2 or more, "
                "or ensemble_penalty to 0.0"
            )
        return self
