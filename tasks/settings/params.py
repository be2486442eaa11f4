"""params.yaml as frozen, typed settings: an unknown key or an ill-typed value is an error."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from tasks.common.errors import InputError
from tasks.common.safe_text import quoted
from tasks.common.yaml_files import read_yaml
from tasks.settings.section import Count, Held, Name, NotNegative, Positive, Schedule, Section, Share

PARAMS_FILE = Path("params.yaml")
# Settings that had another name in an earlier version, and the name that they have now.
RENAMED = {
    "judge": "held_out_reward",
    "gate.min_judge_win_rate": "gate.min_held_out_win_rate",
    "gate.min_judge_accuracy": "gate.min_held_out_accuracy",
    "gate.max_over_optimised_marks": "gate.max_over_optimised_points",
}
# As a source it stands for the built-in example: a real path, so that DVC follows its content.
EXAMPLE = "tasks/data/example.py"


class Runtime(Section):
    """How the arithmetic is carried out."""

    launcher: str
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=1, le=4096)]
    precision: Literal["fp32", "bf16"]
    tokens_per_pass: Count
    gradient_checkpointing: bool
    compile: bool
    slots: Held
    checkpoint_every: Annotated[int, Field(ge=0)]
    checkpoints_kept: Count

    @field_validator("launcher")
    @classmethod
    def _starts_with_a_program(cls, launcher: str) -> str:
        if re.match(r"\s*\w+=", launcher):
            raise ValueError(
                "it must start with a program: set a variable by env, as in env NAME=VALUE accelerate launch"
            )
        return launcher

    @model_validator(mode="after")
    def _compiles_what_is_kept(self) -> "Runtime":
        if self.compile and self.gradient_checkpointing:
            raise ValueError("layers that compute activations again are not compiled: set one of the two to false")
        return self


class Source(Section):
    """Where rows come from, how their columns are called and what of them is left out."""

    source: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # a path
    columns: dict[str, str]
    ignore: list[str]
    limit: Count | None


class Split(Section):
    """Shares of the prompts that are held out."""

    validation: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_training_data(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for training")
        return self


class Example(Section):
    """Size and noise of the built-in example."""

    demonstrations: Held
    preferences: Held
    prompts: Held
    faulty: Share
    label_noise: Annotated[float, Field(ge=0, lt=0.5)]


class Prepare(Section):
    """Raw files to canonical records."""

    demonstrations: Source
    preferences: Source
    prompts: Source
    exclude: str
    split: Split
    example: Example


class Validate(Section):
    """Thresholds of the data checks."""

    max_tokens: Count
    max_quarantined: Share
    min_rows: Count
    max_length_bias: Share
    max_personal_data: Share
    warn: list[str]


class Scratch(Section):
    """Shape of the model made from scratch."""

    vocabulary: Annotated[int, Field(ge=300, le=10**6)]
    hidden_size: Annotated[int, Field(ge=1, le=2**16)]
    layers: Annotated[int, Field(ge=1, le=1000)]
    heads: Count
    context: Held

    @model_validator(mode="after")
    def _heads_divide(self) -> "Scratch":
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size must be an even multiple of heads")
        return self


class Base(Section):
    """The model everything starts from."""

    source: str
    chat_template: str | None
    pad_token: str | None
    scratch: Scratch


class Lora(Section):
    """Low-rank adapters; rank 0 trains all weights."""

    rank: Annotated[int, Field(ge=0, le=2**16)]
    alpha: Positive
    targets: Literal["all-linear"] | list[str]


class Training(Section):
    """What every supervised trainer needs."""

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup: Share
    schedule: Schedule
    weight_decay: NotNegative
    max_grad_norm: Positive


class Sft(Training):
    """Supervised fine-tuning."""


class Reward(Training):
    """The reward model."""

    margin: NotNegative
    centering: NotNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]


class Align(Section):
    """Which algorithm aligns the policy."""

    method: Literal["dpo", "ppo"]


class Dpo(Training):
    """Direct preference optimisation."""

    loss: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "simpo"]
    beta: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    nll_weight: NotNegative
    simpo_gamma: float
    marks: Held
    max_new_tokens: Count

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Dpo":
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing would be ignored by the loss {self.loss}: set it to 0")
        return self


class Ppo(Section):
    """Proximal policy optimisation."""

    estimator: Literal["gae", "rloo", "grpo", "reinforce"]
    critic: Literal["own", "trunk"]
    engine: Literal["slots", "continuous"]
    iterations: Count
    rollouts: Held
    responses: Held
    epochs: Count
    minibatches: Count
    max_new_tokens: Count
    temperature: Positive
    learning_rate: Positive
    critic_learning_rate: Positive
    critic_warmup: Annotated[int, Field(ge=0)]
    schedule: Schedule
    max_grad_norm: Positive
    kl_coefficient: NotNegative
    kl_estimator: Literal["k1", "k2", "k3"]
    kl_target: Positive | None
    kl_horizon: Count
    gamma: Share
    gae_lambda: Share
    clip: Positive
    value_clip: Positive
    value_weight: Positive
    dual_clip: Annotated[float, Field(gt=1)] | None
    entropy_bonus: NotNegative
    score_clip: Positive | None
    missing_eos_penalty: NotNegative
    whiten_rewards: bool
    integration_alpha: Annotated[float, Field(gt=0, le=1)]
    max_update_kl: Positive | None
    marks: Held

    @property
    def is_grouped(self) -> bool:
        """Whether the other answers to a prompt are an answer's yardstick."""
        return self.estimator in ("rloo", "grpo")

    @model_validator(mode="after")
    def _rounds_are_filled(self) -> "Ppo":
        if self.minibatches > self.rollouts:
            raise ValueError("minibatches must not exceed rollouts")
        if self.rollouts % self.responses:
            raise ValueError("rollouts must be a multiple of responses: whole groups of answers to one prompt")
        if self.is_grouped and self.responses < 2:
            raise ValueError(f"the estimator {self.estimator} compares answers to one prompt: raise responses to 2")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Ppo":
        if self.max_update_kl is not None and self.epochs == 1:
            raise ValueError(
                "max_update_kl ends a round's further epochs, and there is one only: raise epochs or null it"
            )
        if self.estimator != "gae" and self.critic_warmup:
            raise ValueError(f"the estimator {self.estimator} has no critic to warm up: set critic_warmup to 0")
        if self.estimator != "gae" and self.critic == "trunk":
            raise ValueError(f"the estimator {self.estimator} has no critic on the policy's trunk: set critic to own")
        if self.is_grouped and (self.gamma, self.integration_alpha, self.whiten_rewards) != (1, 1, False):
            raise ValueError(
                f"the estimator {self.estimator} takes an answer's reward as a whole: "
                "set gamma and integration_alpha to 1 and whiten_rewards to false"
            )
        if self.estimator == "grpo" and self.kl_estimator == "k1":
            raise ValueError("k1 has no gradient in the loss, where grpo has its KL: set kl_estimator to k2 or k3")
        return self


class LlmJudge(Section):
    """A language model behind an OpenAI-compatible server."""

    url: str
    model: Annotated[str, Field(min_length=1)]
    prompts: Count | None

    @field_validator("url")
    @classmethod
    def _is_an_address_alone(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^\s?#@]+", url):  # not said in full: it may hold a password
            raise ValueError(
                "it must begin with http:// or https:// and have neither user, password nor query: "
                "a key belongs into the environment (TRUELINE_JUDGE_API_KEY)"
            )
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise ValueError("it has no such port, or a bracket too many: mend its host and port") from None
        return url


class Evaluate(Section):
    """How models are compared."""

    prompts: Count | None
    max_new_tokens: Count
    temperature: NotNegative
    best_of: Held
    bootstrap: Annotated[int, Field(ge=100, le=10**6)]
    confidence: Annotated[float, Field(gt=0.5, le=0.9999)]
    llm_judge: LlmJudge | None


class Gate(Section):
    """Thresholds of the promotion gate."""

    min_win_rate: Share
    min_held_out_win_rate: Share
    max_over_optimised_points: Annotated[int, Field(ge=0)]
    max_category_regressions: Annotated[int, Field(ge=0)]
    max_kl: Positive
    min_reward_accuracy: Share
    min_held_out_accuracy: Share
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


class Params(Section):
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
    dpo: Dpo
    ppo: Ppo
    evaluate: Evaluate
    gate: Gate
    registry: Registry


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


def parse_params(settings: dict[str, object], origin: str = "params") -> Params:
    """Check settings that have been read already.

    Raises:
        InputError: an unknown or missing key, or a value of the wrong type or size; `origin` names the file.
    """
    try:
        return Params.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"{origin}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    found = error.errors()
    renamed = {RENAMED[key]: key for each in found if (key := _key(each["loc"])) in RENAMED}
    found = [each for each in found if _key(each["loc"]) not in renamed]  # missing under their new names
    first = min(found, key=lambda each: _key(each["loc"]) not in RENAMED)
    key, others = _key(first["loc"]), len(found) - 1
    if key in RENAMED:
        said = f"{key} is now called {RENAMED[key]}: rename it"
    elif first["type"] == "extra_forbidden":
        said = f"{key} is not a setting: remove it or mend its spelling"
    elif first["type"] == "missing":
        said = f"{key} is missing: add it"
    elif first["type"] == "value_error":  # a rule of this file over several keys, which names them and the cure
        said = f"{key}: {first['ctx']['error']}"
    else:
        said = f"{key} is {quoted(first['input'])}, but {first['msg'][0].lower()}{first['msg'][1:]}: change it"
    return said + (f" (and {others} more)" if others else "")


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place)
