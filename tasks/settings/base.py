"""The base model."""

import keyword
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from tasks.common.safe_text import quoted
from tasks.settings.section import Count, Held, Name, Options, Section

# Names in a chat template that libraries or Jinja give a meaning.
RESERVED = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "strftime_now"),
        *("raise_exception", "tojson", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
        *("mask_token", "additional_special_tokens", "true", "false", "none", "loop", "self", "super", "caller"),
        *("varargs", "kwargs", "namespace", "range", "dict", "cycler", "joiner", "lipsum", "set", "block", "macro"),
        *("call", "filter", "autoescape", "include", "extends", "do", "recursive", "ignore", "missing", "scoped"),
    }
)


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


def _arguments_of_a_template(arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in arguments.items():
        if not (name.isascii() and name.isidentifier()):
            raise ValueError(f"{quoted(name)} is no name of a variable: give letters, digits and _")
        if name in RESERVED or keyword.iskeyword(name):
            raise ValueError(f"{name} has its own meaning in a chat template: take it out")
        if not all(
            isinstance(each, bool | int | float | str) for each in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"{name} is neither text, number, true, false nor a list of them: change it")
    return arguments


class Reasoning(Section):
    """How the reasoning before an answer is marked."""

    start: Name
    end: Name

    @model_validator(mode="after")
    def _are_told_apart(self) -> "Reasoning":
        for mark in (self.start, self.end):
            if mark != mark.strip():
                raise ValueError(f"{quoted(mark)} has white space around it: take it out")
        if self.start in self.end or self.end in self.start:
            raise ValueError("start and end must differ, and neither may hold the other")
        return self


class Base(Section):
    """The model everything starts from."""

    source: str
    chat_template: str | None
    template_arguments: Annotated[Options, AfterValidator(_arguments_of_a_template)]
    reasoning: Reasoning | None
    pad_token: str | None
    scratch: Scratch
