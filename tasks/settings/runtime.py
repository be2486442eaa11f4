"""How the arithmetic is carried out, and which weights learn."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tasks.common.network import fault_of_server
from tasks.settings.choices import Device, OptimiserName, OutputDtype, Precision, Quantisation, WeightsDtype
from tasks.settings.section import Count, Held, Positive, Section


class Vllm(Section):
    """The server that samples PPO's answers where ppo.engine is vllm."""

    url: str | None
    weights_folder: Annotated[str, Field(min_length=1)]
    options: list[str]

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        example = "http://127.0.0.1:8000"
        if url is not None and (fault := fault_of_server(url, example)):
            raise ValueError(f"it names a server, {fault}, or null")
        return url


class Runtime(Section):
    """How the arithmetic is carried out."""

    launcher: str
    device: Device
    threads: Annotated[int, Field(ge=1, le=4096)]
    precision: Precision
    output_dtype: OutputDtype
    weights: WeightsDtype
    optimiser: OptimiserName
    max_tokens_per_micro_batch: Count
    gradient_checkpointing: bool
    compile: bool
    max_concurrent_sequences: Held
    vllm: Vllm
    checkpoint_every: Annotated[int, Field(ge=0)]
    max_checkpoints: Count

    @field_validator("launcher")
    @classmethod
    def _starts_with_a_program(cls, launcher: str) -> str:
        if re.match(r"\s*\w+=", launcher):
            raise ValueError(
                "it must start with a program: set a variable by env, as in env NAME=VALUE accelerate launch"
            )
        return launcher

    @model_validator(mode="after")
    def _computes_in_no_more_than_weights_have(self) -> "Runtime":
        if self.weights == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"weights in bf16 are not computed with in {self.precision}: set precision to bf16, or weights to fp32"
            )
        return self

    @model_validator(mode="after")
    def _compiles_what_is_not_recomputed(self) -> "Runtime":
        if self.compile and self.gradient_checkpointing:
            raise ValueError("layers that compute activations again are not compiled: set one of the two to false")
        return self


class Lora(Section):
    """Low-rank adapters; rank 0 trains all weights."""

    rank: Annotated[int, Field(ge=0, le=2**16)]
    alpha: Positive
    targets: Literal["all-linear"] | list[str]
    quantize: Quantisation | None

    @model_validator(mode="after")
    def _quantises_what_is_frozen(self) -> "Lora":
        if self.quantize and self.rank == 0:
            raise ValueError(
                f"quantize is {self.quantize}, but rank is 0, which trains all weights, and quantised ones cannot be "
                "trained: set rank to 1 or more, or quantize to null"
            )
        return self
