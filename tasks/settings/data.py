"""Where rows come from, and what is asked of them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from tasks.common.files import names_path_in
from tasks.settings.choices import Truncate
from tasks.settings.section import Count, Options, Section, Share

# The path of the file without rows: the source of a kind that nothing learns from. Any other empty file is an error.
NO_ROWS = "infra/none.jsonl"


class Source(Section):
    """Where rows come from, how their columns are called and what of them is left out."""

    source: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # a path
    columns: dict[str, str]
    ignore: list[str]
    limit: Count | None
    options: Options  # for the function of a Python file


ExtraName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]  # as Python can name it


class PromptSource(Source):
    """Where prompts come from, and which other columns rewards are given."""

    extra_columns: dict[ExtraName, str]  # the column by the name that rewards know it by
    test_only: list[str]  # categories


class RatingSource(Source):
    """Where rated answers come from, and which ratings are good ones."""

    threshold: float | None  # above it an answer is good, below it bad


class Split(Section):
    """Shares of the prompts that are held out."""

    validation: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_training_data(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for training")
        return self


class Prepare(Section):
    """Raw files to canonical records."""

    demonstrations: Source
    preferences: Source
    ratings: RatingSource
    prompts: PromptSource
    ai_preferences: Source
    data: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]  # a path
    exclude: str
    split: Split

    @model_validator(mode="after")
    def _data_are_read(self) -> "Prepare":
        sources = (self.demonstrations, self.preferences, self.ratings, self.prompts, self.ai_preferences)
        if self.data != NO_ROWS and not any(names_path_in(each.options, Path(self.data)) for each in sources):
            raise ValueError(f"no option of a source names data, {self.data}, or a path in it: name it, or {NO_ROWS}")
        return self


class Validate(Section):
    """Thresholds of the data checks."""

    max_tokens: Count
    truncate: Truncate | None
    max_new_tokens: Count
    max_quarantined: Share
    min_rows: Count
    max_length_bias: Share
    max_personal_data: Share
    warn: list[str]
