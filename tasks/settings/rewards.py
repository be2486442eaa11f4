"""What scores answers: the reward model, verifiers that come with the project, and functions in a user's files."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tasks.common.files import names_path_in
from tasks.common.safe_text import quoted
from tasks.settings.choices import Combination
from tasks.settings.data import NO_ROWS
from tasks.settings.section import Count, Options, Section

# As the source of a reward it stands for the reward model.
MODEL = "model"
# Sources that stand for a function that comes with the project, in tasks/rewards/verifiers.
VERIFIERS: tuple[str, ...] = (
    "exact_match",
    "numeric_answer",
    "multiple_choice",
    "regular_expression",
    "json_schema",
    "length_limit",
    "instructions",
    "code_tests",
    "judge",
)
# Names of other figures, which a reward may not have.
RESERVED = ("reward", "held_out", "held_out_reward", "ground_truth", "kl", "length", "step")


class NamedReward(Section):
    """Something that scores answers, and the name under which its scores are reported."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    source: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # MODEL, one of VERIFIERS, or path.py:function
    # Keyword arguments of the function; an entry of a list may leave them out.
    options: Annotated[Options, Field(default_factory=dict)]

    @property
    def is_model(self) -> bool:
        """Whether it is the reward model trained on the preferences."""
        return self.source == MODEL

    @field_validator("name")
    @classmethod
    def _means_one_thing(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"{name} already names another figure: choose another name")
        return name

    @field_validator("source")
    @classmethod
    def _can_be_loaded(cls, source: str) -> str:
        file, _, function = source.rpartition(":")
        if source not in (MODEL, *VERIFIERS) and not (file.endswith(".py") and function.isidentifier()):
            names = ", ".join((MODEL, *VERIFIERS))
            raise ValueError(f"{quoted(source)} is none of {names}, nor path.py:function: change source")
        return source

    @model_validator(mode="after")
    def _a_function_has_options(self) -> "NamedReward":
        if self.is_model and self.options:
            raise ValueError(f"{MODEL} has no options, only functions do: remove them")
        return self


class TrainingReward(NamedReward):
    """A reward that PPO learns from."""

    weight: float

    @field_validator("weight")
    @classmethod
    def _counts(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("a reward of weight 0 is not learned from: remove it, or name it in rewards.ground_truth")
        return weight


class Rewards(Section):
    """What scores answers: to learn from, and to compare with."""

    code: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # a path
    data: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # a path
    training: Annotated[list[TrainingReward], Field(min_length=1)]
    combine: Combination
    ground_truth: list[NamedReward]

    @property
    def use_model(self) -> bool:
        """Whether the reward model is one of them: where it is not, none is trained."""
        return any(reward.is_model for reward in self.training)

    @model_validator(mode="after")
    def _are_told_apart(self) -> "Rewards":
        names = [reward.name for reward in (*self.training, *self.ground_truth)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rewards are called {twice[0]}: rename one")
        if any(reward.is_model for reward in self.ground_truth) or sum(each.is_model for each in self.training) > 1:
            raise ValueError(f"{MODEL} is the one reward model, which PPO learns from: name it once, in training")
        return self

    @model_validator(mode="after")
    def _are_followed_by_dvc(self) -> "Rewards":
        code = Path(os.path.abspath(self.code))  # noqa: PTH100 - resolve() would follow links
        for source in (reward.source for reward in (*self.training, *self.ground_truth)):
            file = source.rpartition(":")[0]  # none of what is no user's file
            if file and not Path(os.path.abspath(file)).is_relative_to(code):  # noqa: PTH100
                raise ValueError(f"{file} does not lie in {self.code}, which DVC follows: move it, or change code")
        return self

    @model_validator(mode="after")
    def _data_are_read(self) -> "Rewards":
        rewards = (*self.training, *self.ground_truth)
        if self.data != NO_ROWS and not any(names_path_in(each.options, Path(self.data)) for each in rewards):
            raise ValueError(f"no option of a reward names data, {self.data}, or a path in it: name it, or {NO_ROWS}")
        return self


class RewardCheck(Section):
    """The check of the rewards before a policy learns from them."""

    prompts: Count | None
    on_failure: Literal["stop", "warn"]
