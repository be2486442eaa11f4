"""From verdicts to what is kept, what is quarantined, and the figures and sentences about it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.data.checks.schema import SPLITS, Row
from tasks.data.checks.suites import ROW_CHECKS, Verdict
from tasks.data.records import Kind

if TYPE_CHECKING:
    import pandas as pd


class Sorted(NamedTuple):
    """The rows of a file, sorted into kept and quarantined."""

    kind: Kind
    rows: Sequence[Row]
    table: "pd.DataFrame"  # one line a row, as tables() makes it
    found: list[list[str]]  # for each row, the checks that found something, in the order of ROW_CHECKS
    reasons: list[list[str]]  # for each row, those of them that send it to quarantine

    @property
    def kept(self) -> list[Row]:
        """The rows that later stages read."""
        return [row for row, reasons in zip(self.rows, self.reasons, strict=True) if not reasons]

    @property
    def kept_table(self) -> "pd.DataFrame":
        """The table of the kept rows."""
        return self.table.iloc[[index for index, reasons in enumerate(self.reasons) if not reasons]]

    @property
    def quarantined(self) -> int:
        """The number of rows in quarantine."""
        return sum(map(bool, self.reasons))


def sort_rows(
    kind: Kind, rows: Sequence[Row], table: "pd.DataFrame", verdicts: Iterable[Verdict], warn: Iterable[str]
) -> Sorted:
    """Send each row with a finding to quarantine, unless the check only warns."""
    failed: dict[str, set[int]] = {check: set() for check in ROW_CHECKS}
    for verdict in verdicts:
        failed[verdict.check].update(verdict.rows)
    found = [[check for check in ROW_CHECKS if index in failed[check]] for index in range(len(rows))]
    warned = set(warn)
    return Sorted(kind, rows, table, found, [[check for check in checks if check not in warned] for checks in found])


def quarantine_lines(files: Iterable[Sorted]) -> Iterator[dict[str, Any]]:
    """The lines of the quarantine: where each row came from, why it is there, and the row itself."""
    for file in files:
        for row, reasons in zip(file.rows, file.reasons, strict=True):
            if reasons:
                origin = {field: row.record.get(field) for field in ("id", "source", "row")}
                yield {"file": f"{file.kind}.jsonl", **origin, "reasons": reasons, "record": row.record}


def figures(file: Sorted) -> dict[str, Any]:
    """Counts by split and check, and token lengths of the kept rows; checks without findings are left out."""
    kept = Counter(row.split for row in file.kept)
    findings: dict[str, Counter[str]] = {check: Counter() for check in ROW_CHECKS}
    for row, checks in zip(file.rows, file.found, strict=True):
        for check in checks:
            findings[check][row.split] += 1
    return {
        "rows": len(file.rows),
        "kept": len(file.kept),
        "quarantined": file.quarantined,
        "splits": {split: kept[split] for split in SPLITS},
        "findings": {check: dict(sorted(counts.items())) for check, counts in findings.items() if counts},
        "tokens": _statistics(file.kept_table["tokens"]),
        **({"longer_chosen": _mean(file.kept_table["longer_chosen"])} if file.kind == "preferences" else {}),
    }


def warnings(file: Sorted, unmet: Mapping[str, Verdict], limits: Mapping[str, float]) -> Iterator[str]:
    """One sentence for everything found that removed no row.

    Args:
        file: the sorted rows.
        unmet: the expectations of the kept rows that fail, by their check.
        limits: the largest shares, by their check.
    """
    stayed = Counter(check for row in zip(file.found, file.reasons, strict=True) for check in set(row[0]) - set(row[1]))
    for check in ROW_CHECKS:
        if stayed[check] and check not in limits:
            yield f"{file.kind}: {stayed[check]} rows stay although the check {check} found something"
    for check, about in {
        "length_bias": "the longer answer was chosen in {share:.1%} of the pairs",
        "personal_data": "{share:.1%} of the rows look like personal data",
    }.items():
        if check in unmet:
            share, setting = unmet[check].observed, f"validate.max_{check}"
            yield f"{file.kind}: {about.format(share=share)}, over {setting} {limits[check]}"


def summary(file: Sorted) -> str:
    """Counts by reason and the first quarantined row, as a part of a sentence."""
    counts = Counter(reason for reasons in file.reasons for reason in reasons)
    if not counts:
        return "none of them quarantined"
    first = next(row for row, reasons in zip(file.rows, file.reasons, strict=True) if reasons)
    named = ", ".join(f"{check} {counts[check]}" for check in ROW_CHECKS if counts[check])
    return f"{file.quarantined} quarantined: {named}; first {first.place}"


def _statistics(tokens: "pd.Series[float]") -> dict[str, float | int | None]:
    known = tokens.dropna()
    if known.empty:
        return dict.fromkeys(("mean", "p50", "p95", "max"))
    middle, high = known.quantile([0.5, 0.95], interpolation="lower")
    return {"mean": round(float(known.mean()), 2), "p50": int(middle), "p95": int(high), "max": int(known.max())}


def _mean(column: "pd.Series[float]") -> float | None:
    return round(float(column.mean()), 4) if column.notna().any() else None
