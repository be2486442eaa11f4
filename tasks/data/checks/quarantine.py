"""From results to valid rows, quarantined rows, and the figures and sentences about it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasks.common.rounding import number
from tasks.data.checks.schema import SPLITS, location_of
from tasks.data.checks.suites import FOUND_IN, ROW_CHECKS, SHARES, CheckResult
from tasks.data.checks.validation import Cut, FileFigures, SplitCounts, TokenFigures
from tasks.data.records import PAIRS, Kind

if TYPE_CHECKING:
    import pandas as pd

# What is checked and counted of the valid rows.
_VALID_COLUMNS = ("split", "training", "tokens", *SHARES.values())
Flags = dict[str, npt.NDArray[np.bool_]]  # by check: (N,) True for the rows in which it found something


class Sorted(NamedTuple):
    """The N rows of a file, sorted into valid and quarantined."""

    kind: Kind
    records: Sequence[Mapping[str, Any]]
    table: "pd.DataFrame"  # one line a row, as tables() makes it
    found: Flags  # of all ROW_CHECKS, in their order
    reasons: Flags  # those of them that send a row to quarantine
    is_valid: npt.NDArray[np.bool_]  # (N,)

    @property
    def valid(self) -> Iterator[Mapping[str, Any]]:
        """The records that later stages read."""
        return compress(self.records, self.is_valid)

    @property
    def valid_table(self) -> "pd.DataFrame":
        """What is to be known of the valid rows."""
        return self.table.loc[self.is_valid, [name for name in _VALID_COLUMNS if name in self.table]]

    @property
    def quarantined(self) -> int:
        """The number of rows in quarantine."""
        return int((~self.is_valid).sum())


def sort_rows(
    kind: Kind,
    records: Sequence[Mapping[str, Any]],
    table: "pd.DataFrame",
    results: Iterable[CheckResult],
    warn: Iterable[str],
) -> Sorted:
    """Send each row with a finding to quarantine, unless the check only warns."""
    found = {check: np.zeros(len(records), dtype=bool) for check in ROW_CHECKS}
    for result in results:
        found[result.check][result.rows] = True
    warned = set(warn)
    reasons = {check: flags for check, flags in found.items() if check not in warned}
    is_bad = np.zeros(len(records), dtype=bool)
    for flags in reasons.values():
        is_bad |= flags
    return Sorted(kind, records, table, found, reasons, ~is_bad)


def quarantine_lines(files: Iterable[Sorted]) -> Iterator[dict[str, Any]]:
    """The lines of the quarantine: where each row came from, why it is there, what was found, and the row itself."""
    for file in files:
        for index in np.flatnonzero(~file.is_valid).tolist():
            record = file.records[index]
            place = {field: record.get(field) for field in ("id", "source", "row")}
            reasons = [check for check, flags in file.reasons.items() if flags[index]]
            found = {check: file.table[column].iat[index] for check, column in FOUND_IN.items() if check in reasons}
            yield {"file": f"{file.kind}.jsonl", **place, "reasons": reasons, "found": found, "record": record}


def file_figures(file: Sorted, *, truncates: bool) -> FileFigures:
    """Counts by split and check, and lengths of the valid rows in tokens; where long rows are cut, what they lost."""
    table, split = file.valid_table, file.table["split"]
    by_split = Counter(table["split"])
    findings = {check: Counter(split[flags]) for check, flags in file.found.items()}
    beside: dict[str, Any] = {"longer_chosen": _mean(table["longer_chosen"])} if file.kind in PAIRS else {}
    if truncates:
        beside["truncated"] = _truncated(file)
    return FileFigures(
        rows=len(split),
        valid=len(table),
        quarantined=file.quarantined,
        splits=SplitCounts(**{split: by_split[split] for split in SPLITS}),
        findings={check: dict(sorted(counts.items())) for check, counts in findings.items() if counts},
        tokens=_lengths(table["tokens"]),
        **beside,
    )


def _truncated(file: Sorted) -> dict[str, Cut]:
    rows, tokens = Counter[str](), Counter[str]()
    for record in file.valid:
        for field, lost in (record.get("truncated") or {}).items():
            rows[field] += 1
            tokens[field] += lost
    return {field: Cut(rows=rows[field], tokens=tokens[field]) for field in sorted(rows)}


def warnings(file: Sorted, unmet: Mapping[str, CheckResult], limits: Mapping[str, float]) -> Iterator[str]:
    """One sentence for everything found that removed no row.

    Args:
        file: the sorted rows.
        unmet: the expectations of the valid rows that fail, by their check.
        limits: the largest shares, by their check.
    """
    for check, flags in file.found.items():
        if check not in file.reasons and check not in limits and flags.any():
            yield f"{file.kind}: {flags.sum()} rows stay although the check {check} found something"
    for check, about in {
        "length_bias": "the longer answer was chosen in {share} of the pairs",
        "personal_data": "{share} of the rows look like personal data",
    }.items():
        if check in unmet:
            share, setting = unmet[check].observed, f"validate.max_{check}"
            yield f"{file.kind}: {about.format(share=number(share))}, over {setting} {limits[check]}"


def summary(file: Sorted) -> str:
    """Counts by reason and the first quarantined row, as a part of a sentence."""
    if file.is_valid.all():
        return "none of them quarantined"
    first = file.records[int(file.is_valid.argmin())]
    named = ", ".join(f"{check} {flags.sum()}" for check, flags in file.reasons.items() if flags.any())
    return f"{file.quarantined} quarantined: {named}; first {location_of(first)}"


def _lengths(tokens: "pd.Series[float]") -> TokenFigures:
    known = tokens.dropna()
    if known.empty:
        return TokenFigures(mean=None, p50=None, p95=None, max=None)
    middle, high = known.quantile([0.5, 0.95], interpolation="lower")
    return TokenFigures(mean=round(float(known.mean()), 2), p50=int(middle), p95=int(high), max=int(known.max()))


def _mean(column: "pd.Series[float]") -> float | None:
    return round(float(column.mean()), 4) if column.notna().any() else None
