"""What a candidate must reach, and under which names it is registered."""

from typing import Annotated

from pydantic import Field

from tasks.settings.section import Name, NotNegative, Positive, Section, Share


class Gate(Section):
    """Thresholds of the promotion gate."""

    min_win_rate: Share
    min_held_out_win_rate: Share
    max_over_optimised_points: Annotated[int, Field(ge=0)]
    max_category_regressions: Annotated[int, Field(ge=0)]
    max_kl: Positive
    min_reward_accuracy: Share
    min_held_out_accuracy: Share
    reward_beats_baselines: bool
    min_length_ratio: NotNegative
    max_length_ratio: Positive
    min_eos_rate: Share
    max_repetition: Share
    max_refusals_gained: Share
    max_perplexity_ratio: Positive


class Registry(Section):
    """Names in MLflow, and who promotes."""

    policy: Name
    reward: Name
    experiment: Name
    approval: bool
    publish: bool
