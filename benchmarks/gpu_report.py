"""What a GPU was measured to do, as the section of docs/benchmarks.md between two markers."""

from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import Check
from benchmarks.rounds import OURS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- make gpu writes from here -->", "<!-- to here -->"
# Dense bf16 operations a second by the makers' data sheets, the first whose name is part of the device's.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def data_sheet_peak(device: str) -> float | None:
    """The dense bf16 rate of a device, in operations a second; None: it is not listed."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def written(page: str, section: str) -> str:
    """Put the section between the markers of a page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def section(machine: dict[str, Any], checks: list[Check], rows: list[dict[str, Any]], left_out: list[str]) -> str:
    """All that was measured, as Markdown."""
    peak = f"{machine['peak'] / 1e12:.3g} TFLOP/s {machine['peak_from']}"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    facts = f"{machine['date']}, {machine['device']}, commit {machine['commit']}. {versions}. Peak: {peak}; "
    facts += f"best matrix product {machine['measured_peak'] / 1e12:.3g}. {machine['seconds']:.0f} s in all."
    lines = [facts, "", "| check | found | at most | |", "|---|---|---|---|", *map(check_line, checks)]
    lines += ["", "| | tokens/s | times faster | MFU | peak GiB | loss differs by |", "|---|---|---|---|---|---|"]
    lines += [line for group in grouped(rows) for line in row_lines(group)]
    if left_out:
        lines += ["", f"**Left out**: {'; '.join(left_out)}."]
    return "\n".join(lines)


def check_line(check: Check) -> str:
    """A check as a row."""
    if check.found is None:
        return f"| {check.name} | not run: {check.why_not} | {check.bound:g} | |"
    return f"| {check.name} | {check.found:.2g} | {check.bound:g} | {'holds' if check.holds else '**fails**'} |"


def grouped(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of one kind and size beside one another, in the order they came."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["kind"]), []).append(row)
    return list(groups.values())


def row_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The variants of one kind and size; how much faster each is than the first that is not ours."""
    others = [row for row in rows if not row["variant"].startswith(OURS)]
    lines = []
    for row in rows:
        is_ours = row["variant"].startswith(OURS)
        faster = f"{seconds_a_token(others[0]) / seconds_a_token(row):.2f}" if others and is_ours else ""
        name = f"{row['kind']} {row['size']}: {row['variant']}"
        name = f"**{name}**" if is_ours else name
        share = f"{row['of_peak']:.0%}" if "of_peak" in row else ""
        difference = f"{row['difference']:.1e}" if "difference" in row and not is_ours else ""
        cells = [name, f"{1 / seconds_a_token(row):,.0f}", faster, share, f"{row['memory'] / 2**10:.1f}", difference]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def seconds_a_token(row: dict[str, Any]) -> float:
    """Of a token that is learned from, prompts once; where answers are sampled, of a sampled one."""
    seconds: float = row["seconds_a_token"] if "seconds_a_token" in row else row["seconds"]
    return seconds
