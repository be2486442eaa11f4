"""Supervised training: fine-tuning and the reward models."""

from typing import Annotated

from pydantic import Field

from tasks.settings.choices import Pooling, Schedule
from tasks.settings.section import Count, NotNegative, Positive, Section, Share


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

    pooling: Pooling
    margin: NotNegative
    centering: NotNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
