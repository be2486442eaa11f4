"""What every group of settings is: immutable, strict about types, closed to unknown keys, and made of plain numbers."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from tasks.common.safe_text import quoted

LARGEST = 2**53  # beyond it a whole number may become another one as a floating-point number
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Held = Annotated[int, Field(ge=1, le=10**6)]  # so many are held in memory, or allocated, at once
Name = Annotated[str, Field(pattern=r"^[^\p{C}]+$")]  # nothing invisible in it


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_stored_by_dvc(cls, value: object) -> object:
        texts = value if isinstance(value, list) else [value]
        if isinstance(value, dict) and all(isinstance(inner, str) for inner in value.values()):  # no section, as a rule
            texts = [*value, *value.values()]
        for text in texts:
            _check_text(text)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _is_a_plain_number(cls, value: object) -> object:
        for number in value if isinstance(value, list) else [value]:
            _check_number(number)
        return value


def _check_text(text: object) -> None:
    if isinstance(text, str) and "\x85" in text:  # dvc.lock would have a space there
        raise ValueError(r"it has the character \x85 (next line), which DVC does not keep: take it out")


def _check_number(number: object) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{number} is no number that a setting can have: change it")
    if isinstance(number, float) and number == 0 and math.copysign(1, number) < 0:
        raise ValueError("-0.0 is no number that a setting can have: write 0.0")
    if isinstance(number, int | float) and abs(number) > LARGEST:
        raise ValueError(f"{quoted(number)} is larger than any setting: change it")


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Check what a user's own setting holds, at any depth."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {quoted(key)} is no text: put it in quotes")
        for inner in (*value, *value.values()):
            _plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _plain(inner)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{quoted(value)} is neither text, number, list nor mapping: put it in quotes")
    else:
        _check_text(value)
        _check_number(value)
    return value


Options = Annotated[dict[str, Any], AfterValidator(_plain)]  # settings of a user's own function
