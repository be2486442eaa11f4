"""params.yaml as frozen, typed settings: an unknown key or an ill-typed value is an error."""

from functools import reduce
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from tasks.common.errors import InputError
from tasks.common.safe_text import quoted
from tasks.common.yaml_files import read_yaml
from tasks.methods import EXTRA_INPUTS, METHODS
from tasks.settings.alignment import Align, Dpo, Kto, Methods, MethodSettings, Ppo
from tasks.settings.base import Base, Scratch
from tasks.settings.data import NO_ROWS, Prepare, PromptSource, RatingSource, Source, Split, Validate
from tasks.settings.evaluation import Evaluate, LlmJudge
from tasks.settings.events import Freshness, Notify
from tasks.settings.promotion import Gate, Registry
from tasks.settings.rewards import NamedReward, RewardCheck, Rewards, TrainingReward
from tasks.settings.runtime import Lora, Runtime
from tasks.settings.training import Reward, Sft, Training

__all__ = [
    "MOVED",
    "NO_ROWS",
    "PARAMS_FILE",
    "RENAMED",
    "RENAMED_VALUES",
    "Align",
    "Base",
    "Dpo",
    "Evaluate",
    "Freshness",
    "Gate",
    "Kto",
    "LlmJudge",
    "Lora",
    "MethodSettings",
    "Methods",
    "NamedReward",
    "Notify",
    "Params",
    "Ppo",
    "Prepare",
    "PromptSource",
    "RatingSource",
    "Registry",
    "Reward",
    "RewardCheck",
    "Rewards",
    "Runtime",
    "Scratch",
    "Sft",
    "Source",
    "Split",
    "Training",
    "TrainingReward",
    "Validate",
    "load_params",
    "parse_params",
]

PARAMS_FILE = Path("params.yaml")
# Settings that had another name in an earlier version, and the name that they have now.
RENAMED = {
    "judge": "held_out_reward",
    "gate.min_judge_win_rate": "gate.min_held_out_win_rate",
    "gate.min_judge_accuracy": "gate.min_held_out_accuracy",
    "gate.max_over_optimised_marks": "gate.max_over_optimised_points",
    "runtime.tokens_per_pass": "runtime.max_tokens_per_micro_batch",
    "runtime.slots": "runtime.max_concurrent_sequences",
    "runtime.checkpoints_kept": "runtime.max_checkpoints",
    "sft.warmup": "sft.warmup_ratio",
    "reward.warmup": "reward.warmup_ratio",
    "held_out_reward.warmup": "held_out_reward.warmup_ratio",
    "dpo.warmup": "dpo.warmup_ratio",
    "dpo.marks": "dpo.evaluation_points",
    "ppo.marks": "ppo.evaluation_points",
    "ppo.responses": "ppo.responses_per_prompt",
    "ppo.minibatches": "ppo.num_minibatches",
    "ppo.integration_alpha": "ppo.reward_smoothing",
}
# Values that had another name: of each setting, the old one and the one it has now.
RENAMED_VALUES = {
    "ppo.estimator": {"reinforce": "reinforce_plus_plus"},
    "ppo.critic": {"own": "separate", "trunk": "shared"},
    "ppo.engine": {"slots": "builtin"},
}
# Settings that an earlier version had, and where to write them now.
MOVED = {
    "prepare.example": "prepare.demonstrations.options, prepare.preferences.options and prepare.prompts.options",
}


class Params(Methods):
    """All settings of the pipeline."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    runtime: Runtime
    prepare: Prepare
    validate_: Validate = Field(alias="validate")
    base: Base
    lora: Lora
    sft: Sft
    reward: Reward
    held_out_reward: Reward
    align: Align
    rewards: Rewards
    reward_check: RewardCheck
    evaluate: Evaluate
    gate: Gate
    registry: Registry
    freshness: Freshness
    notify: Notify

    @model_validator(mode="after")
    def _adapters_are_fp32(self) -> "Params":
        if self.runtime.weights == "bf16" and self.lora.rank:
            raise ValueError(
                f"runtime.weights is bf16, but lora.rank {self.lora.rank} trains adapters, which are small and stay in "
                "fp32: set runtime.weights to fp32 (what is frozen follows runtime.precision), or lora.rank to 0"
            )
        return self

    @model_validator(mode="after")
    def _method_is_what_its_name_says(self) -> "Params":
        method = self.align.method
        for name, wanted in METHODS[method].settings.items():
            found = reduce(getattr, name.split("."), self)
            if found != wanted:
                raise ValueError(
                    f"{name} is {found}, but align.method {method} means {wanted}: trueline configure "
                    f"align.method={method} writes it"
                )
        return self

    @model_validator(mode="after")
    def _rewards_can_be_normalised(self) -> "Params":
        if self.rewards.combine == "normalise_then_sum" and METHODS[self.align.method].stage == "ppo":
            if not self.ppo.is_grouped:
                raise ValueError(
                    "rewards.combine: normalise_then_sum compares the answers to one prompt, but the estimator "
                    f"{self.ppo.estimator} does not: set ppo.estimator to grpo, rloo or reinforce_plus_plus_baseline"
                )
            if not self.ppo.grpo_divide_by_std:
                raise ValueError(
                    "rewards.combine: normalise_then_sum divides by each reward's deviation: "
                    "set ppo.grpo_divide_by_std to true"
                )
        return self

    @model_validator(mode="after")
    def _what_is_learned_from_is_there(self) -> "Params":
        method = METHODS[self.align.method]
        needed: dict[str, str] = {"demonstrations": "sft learns from them", "prompts": "evaluate answers them"}
        if self.rewards.use_model:
            needed["preferences"] = "the reward model of rewards.training learns from them"
        needed |= dict.fromkeys(method.learns_from - EXTRA_INPUTS, f"align.method {self.align.method} learns from them")
        for kind, why in needed.items():
            if kind in Prepare.model_fields and getattr(self.prepare, kind).source == NO_ROWS:
                raise ValueError(f"prepare.{kind}.source is {NO_ROWS}, which has no rows, but {why}: name a source")
        return self

    @model_validator(mode="after")
    def _prompts_leave_room_for_the_answers(self) -> "Params":
        room = self.validate_.max_new_tokens
        asked = {name: getattr(self, name).max_new_tokens for name in (*Methods.model_fields, "evaluate")}
        for name, longest in asked.items():
            if longest > room:
                raise ValueError(
                    f"{name}.max_new_tokens is {longest}, but the checked prompts leave room for "
                    f"{room} tokens only: raise validate.max_new_tokens, or lower it"
                )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check the settings.

    Raises:
        InputError: the file is missing, is not valid YAML or is read differently by others, or a setting is wrong.
    """
    try:
        settings = read_yaml(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run from the project's root, where it lies") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds no settings: restore it from git")
    return parse_params(settings, str(path))


def parse_params(settings: dict[str, object], source: str = "params") -> Params:
    """Check settings that have been read already.

    Raises:
        InputError: an unknown or missing key, or a value of the wrong type or size; `source` names the file.
    """
    try:
        return Params.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    found = error.errors()
    renamed = {RENAMED[key]: key for each in found if (key := _key(each["loc"])) in RENAMED}
    found = [each for each in found if _key(each["loc"]) not in renamed]  # missing under their new names
    # A name of before explains more than a value that is wrong, and that more than a key that is missing.
    first = min(found, key=lambda each: (_key(each["loc"]) not in (*RENAMED, *MOVED), each["type"] == "missing"))
    key, others = _key(first["loc"]), len(found) - 1
    if key in RENAMED:
        message = f"{key} is now called {RENAMED[key]}: rename it"
    elif key in MOVED:
        message = f"{key} is no section any more: write its settings under {MOVED[key]}"
    elif isinstance(old := first["input"], str) and old in RENAMED_VALUES.get(key, {}):
        message = f"{key}: the value {old} is now called {RENAMED_VALUES[key][old]}: change it"
    elif first["type"] == "extra_forbidden":
        message = f"{key} is not a setting: remove it or correct its spelling"
    elif first["type"] == "missing":
        message = f"{key} is missing: add it"
    elif first["type"] == "value_error":  # a rule of these files over several keys, which names them and the cure
        message = ": ".join(filter(None, (key, str(first["ctx"]["error"]))))
    else:
        message = f"{key} is {quoted(first['input'])}, but {first['msg'][0].lower()}{first['msg'][1:]}: change it"
    return message + (f" (and {others} more)" if others else "")


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place)
