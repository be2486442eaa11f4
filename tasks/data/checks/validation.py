"""The layout of metrics/validate.json, which is written and read through these classes."""

from tasks.common.files import METRICS
from tasks.common.record import Number, Record, Text

VALIDATION = METRICS / "validate.json"


class SplitCounts(Record):
    """Valid rows by split."""

    train: int
    validation: int
    test: int


class TokenFigures(Record):
    """Lengths of the valid rows in tokens; None: there is no valid row."""

    mean: Number
    p50: int | None
    p95: int | None
    max: int | None


class Cut(Record):
    """What one field of the valid rows has lost."""

    rows: int
    tokens: int


class FileFigures(Record):
    """One file of prepared rows."""

    rows: int
    valid: int
    quarantined: int
    splits: SplitCounts
    findings: dict[str, dict[str, int]]  # rows by check and split; checks without findings are left out
    tokens: TokenFigures
    longer_chosen: Number = None  # share of the pairs; not set: these rows are no pairs
    truncated: dict[str, Cut] | None = None  # by field; not set: validate.truncate is null


class Validation(Record):
    """metrics/validate.json."""

    demonstrations: FileFigures
    preferences: FileFigures
    ratings: FileFigures
    prompts: FileFigures
    ai_preferences: FileFigures
    warnings: list[Text]

    @property
    def by_kind(self) -> dict[str, FileFigures]:
        """The figures by the kind of the rows."""
        return {name: value for name, value in self if isinstance(value, FileFigures)}
