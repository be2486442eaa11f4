"""The figures as tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

Rows = list[dict[str, Any]]


def show(machine: dict[str, Any], rows: Rows, grown: Rows) -> None:
    """Print what there is: trainers on given rows, whatever samples, growth, and the machine."""
    console = Console(width=150)
    for table, of in (
        (given(machine["clock"]), [row for row in rows if "difference" in row]),
        (sampled(machine["clock"]), [row for row in rows if "length" in row]),
        (growth(machine["clock"]), grown),
    ):
        for row in of:
            table.add_row(*cells(row))
        if of:
            console.print(table)
    facts = machine | {"peak": f"{machine['peak'] / 1e9:.0f} GFLOP/s"}
    console.print(" · ".join(f"{name} {value}" for name, value in facts.items()))


def given(clock: str) -> Table:
    """Trainers on given rows."""
    columns = ("kind", "size", "variant", f"{clock} s (range)", "ratio", "GFLOP/s (of peak)", "MiB", "loss differs by")
    return Table(*columns, title="Same rows, same steps")


def sampled(clock: str) -> Table:
    """What samples: every variant draws its own answers, so times per token are compared."""
    columns = ("kind", "size", "variant", f"{clock} ms a generated token (range)", "ratio", "s an answer", "MiB")
    return Table(*columns, "length", "reward", "KL a token", "entropy", title="Answers sampled: per generated token")


def growth(clock: str) -> Table:
    """One trainer on more data, and on larger models."""
    columns = ("kind", "size", "data", "tokens", f"{clock} s", "µs a token", "GFLOP/s (of peak)", "MiB")
    return Table(*columns, title="Trueline: growth with data and model")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table that it belongs to."""
    memory = f"{row['memory']:.0f}"
    if "data" in row:
        cost = [f"{row['seconds']:.3g}", f"{row['seconds_a_token'] * 1e6:.0f}", arithmetic(row), memory]
        return [row["kind"], row["size"], f"{row['data']}x", f"{row['tokens']:,.0f}", *cost]
    scale = 1000 if "length" in row else 1  # ms a token
    span = " ".join(f"{row[name] * scale:.3g}" for name in ("lowest", "highest"))
    first = [row["kind"], row["size"], row["variant"], f"{row['seconds'] * scale:.3g} ({span})", f"{row['ratio']:.2f}"]
    if "length" not in row:
        return [*first, arithmetic(row), memory, f"{row['difference']:.1e}"]
    scored = [f"{row[name]:{form}}" if name in row else "" for name, form in SCORED.items()]
    return [*first, f"{row['seconds_an_answer']:.3g}", memory, f"{row['length']:.1f}", *scored]


SCORED = {"reward": ".2f", "kl": ".1e", "entropy": ".2f"}


def arithmetic(row: dict[str, Any]) -> str:
    """The arithmetic that was needed, a second."""
    return f"{row['flops'] / 1e9:.0f} ({row['of_peak']:.0%})"
