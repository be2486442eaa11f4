"""`python -m benchmarks`: our trainers and TRL's on the same work, as a table or as JSON."""

import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import Job
from benchmarks.rounds import KINDS, interleaved, summarise, variants

LARGEST_DIFFERENCE = {"fp32": 1e-5, "bf16": 1e-3}
LIBRARIES = ("torch", "transformers", "trl", "accelerate")


def main(  # noqa: PLR0917  each is an option
    kinds: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(KINDS)}; all unless named")] = None,
    size: Annotated[list[str] | None, typer.Option(help="S, M or L; may be given twice")] = None,
    rounds: Annotated[int, typer.Option(help="of all variants")] = 3,
    steps: Annotated[int, typer.Option(help="counted ones in a run; two more warm up")] = 20,
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Run our trainers and TRL's on the same work, alternating, and print medians and ratios."""
    # Before torch is loaded, here and in the workers, which inherit it.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    import torch

    from benchmarks.ours import make_reward_model
    from benchmarks.workloads import SIZES, make_model, matrix_peak

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    errors = Console(stderr=True)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as workplace:
        for name in size or ["S", "M"]:
            folder, scored = Path(workplace) / name, Path(workplace) / f"{name}-reward"
            make_model(SIZES[name], folder)
            make_reward_model(folder, scored)
            for kind in kinds or KINDS:
                job = Job(kind, name, folder, scored, precision, steps, threads=threads)
                found = interleaved(job, list(variants(kind)), rounds, errors.print)
                table += summarise(job, found, peak)
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": threads,
        "peak": peak,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }
    if as_json:
        print(json.dumps({"machine": machine, "rows": table}, indent=2))
    else:
        show(machine, table)
    allowed = LARGEST_DIFFERENCE[precision]
    unequal = [row for row in table if counts(row) and row.get("difference", 0.0) > allowed]
    if unequal:
        names = ", ".join(f"{row['kind']} {row['size']} {row['variant']}" for row in unequal)
        errors.print(f"losses differ by more than {allowed}, so these figures do not count: {names}")
        sys.exit(1)


def counts(row: dict[str, Any]) -> bool:
    """Whether a variant is to have our losses: not in another precision, nor on other batches."""
    return row["variant"] not in ("TRL as shipped", "TRL by length")


def show(machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the table for people."""
    table = Table(*("kind", "size", "variant", "CPU s (range)", "ratio", "GFLOP/s (of peak)", "MiB", "loss differs by"))
    for row in rows:
        scale = 1000 if row["kind"] == "generate" else 1  # ms a token
        span = " ".join(f"{row[name] * scale:.3g}" for name in ("lowest", "highest"))
        flops = f"{row['flops'] / 1e9:.0f} ({row['of_peak']:.0%})" if "flops" in row else ""
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        table.add_row(
            row["kind"],
            row["size"],
            row["variant"],
            f"{row['seconds'] * scale:.3g} ({span})",
            f"{row['ratio']:.2f}",
            flops,
            f"{row['memory']:.0f}",
            difference,
        )
    console = Console(width=140)
    console.print(table)
    console.print(
        " · ".join(
            f"{name} {value if name != 'peak' else f'{value / 1e9:.0f} GFLOP/s'}" for name, value in machine.items()
        )
    )


if __name__ == "__main__":
    typer.run(main)
