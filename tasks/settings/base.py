"""The base model."""

from typing import Annotated

from pydantic import Field, model_validator

from tasks.settings.section import Count, Held, Section


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
