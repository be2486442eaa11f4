"""The data docs: what was expected of the rows and what was found, as one page that loads nothing and runs nothing.

Great Expectations tests, but its own pages load scripts from elsewhere, so that they are empty without a network, and
hold rows as they are, so that a row can run scripts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.html_templates import html_templates
from tasks.common.rounding import number
from tasks.data.checks.quarantine import Sorted
from tasks.data.checks.schema import SPLITS, location_of
from tasks.data.checks.suites import CheckResult

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = "data_docs.html.j2"
SAMPLES = 10  # rows shown of each check; the quarantine holds all
LONGEST_TEXT = 500  # characters of a finding that are shown


class Examined(NamedTuple):
    """A file, and what came of both suites on it."""

    file: Sorted
    of_rows: Sequence[CheckResult]
    of_valid: Sequence[CheckResult]


class Sample(NamedTuple):
    """A row in which something was found."""

    location: str
    split: str
    found: str


class Line(NamedTuple):
    """One expectation, as text."""

    check: str
    description: str
    outcome: str  # met, quarantined, warns or missed
    found: str  # how many rows, or the figure tested
    samples: list[Sample]
    more: int  # rows that are not shown


class Section(NamedTuple):
    """One file."""

    name: str
    counts: list[str]  # rows, valid, in quarantine, and the valid ones by split
    of_rows: list[Line]
    of_valid: list[Line]


def render(examined: Iterable[Examined], warn: Sequence[str]) -> str:
    """Write the page; the same rows give the same bytes.

    Args:
        examined: the files.
        warn: checks whose findings only warn.
    """
    environment = html_templates(Path(__file__).parent)
    sections = [_section(each, warn) for each in examined]
    return environment.get_template(TEMPLATE).render(sections=sections, splits=SPLITS)


def _section(examined: Examined, warn: Sequence[str]) -> Section:
    file = examined.file
    splits = file.valid_table["split"]
    counts = [len(file.records), len(splits), file.quarantined, *(int((splits == split).sum()) for split in SPLITS)]
    return Section(
        file.kind,
        [number(count, 0) for count in counts],
        [_of_rows(file, result, warn) for result in examined.of_rows],
        [_of_valid(result, warn) for result in examined.of_valid],
    )


def _of_rows(file: Sorted, result: CheckResult, warn: Sequence[str]) -> Line:
    """Tell of an expectation of single rows, with the first that fail it."""
    outcome = "met" if result.success else "warns" if result.check in warn else "quarantined"
    share = number(len(result.rows) / len(file.records)) if file.records else number(None)
    found = f"{number(len(result.rows), 0)} rows ({share})" if result.rows else "none"
    return Line(
        result.check,
        result.description,
        outcome,
        found,
        list(_samples(file.records, file.table, result)),
        max(0, len(result.rows) - SAMPLES),
    )


def _samples(records: Sequence[Mapping[str, Any]], table: "pd.DataFrame", result: CheckResult) -> Iterator[Sample]:
    for row in result.rows[:SAMPLES]:
        value: Any = table[result.column].iat[row] if result.column else ""
        found = value if isinstance(value, str) else f"{result.column}: {number(float(value), 0)}"
        shortened = f"{found[:LONGEST_TEXT]}… ({len(found):,} characters)" if len(found) > LONGEST_TEXT else found
        yield Sample(location_of(records[row]), str(table["split"].iat[row]), shortened)


def _of_valid(result: CheckResult, warn: Sequence[str]) -> Line:
    """Describe an expectation of all valid rows."""
    outcome = "met" if result.success else "warns" if result.check in warn else "missed"
    return Line(result.check, result.description, outcome, _as_text(result.observed), [], 0)


def _as_text(observed: Any) -> str:  # noqa: ANN401 (anything that an expectation observes)
    """Write a count, a share, or the values that a column has."""
    if isinstance(observed, Real):
        return number(float(observed), 0 if isinstance(observed, Integral) else 3)
    return ", ".join(map(str, observed or []))
