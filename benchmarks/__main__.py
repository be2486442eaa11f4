"""`python -m benchmarks`: our trainers and TRL's on the same work, as tables or as JSON."""

import json
import os
import platform
import sys
import tempfile
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.jobs import Job
from benchmarks.report import show
from benchmarks.rounds import KINDS, interleaved, summarise, variants
from benchmarks.scaling import TRAINERS, scaling

LARGEST_DIFFERENCE = {"fp32": 1e-5, "bf16": 1e-3}
LIBRARIES = ("torch", "transformers", "trl", "accelerate")
SCALING = "scaling"
# Counted steps of a run: batches of the trainers on given rows, rounds of whatever samples.
STEPS = {"XS": (10, 2), "S": (8, 1), "M": (4, 1), "L": (20, 3), "0.5B": (20, 2), "1.5B": (15, 2)}


def main(  # noqa: PLR0917  each is an option
    kinds: Annotated[
        list[str] | None, typer.Argument(help=f"of {', '.join((*KINDS, SCALING))}; all unless named")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="of workloads.SIZES; may be given twice; S unless named, L on a GPU")
    ] = None,
    rounds: Annotated[int, typer.Option(help="of all variants")] = 3,
    steps: Annotated[
        int | None, typer.Option(help="counted ones in a run, besides those that warm up; fewer the larger the model")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; fp32 unless named, bf16 on a GPU")] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows or pairs in a step; 8 unless named, 32 on a GPU")] = None,
    answers: Annotated[int, typer.Option(help="sampled in a round")] = 64,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Run our trainers and TRL's on the same work, alternating, and print medians and ratios."""
    # Before transformers is loaded here, and for the workers, which inherit it.
    os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error"}
    import torch

    from benchmarks.workloads import matrix_peak

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    precision = precision or ("bf16" if is_gpu else "fp32")
    peak = matrix_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    errors = Console(stderr=True)
    table: list[dict[str, Any]] = []
    grown: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary_folder:
        common = Job(
            kind="",
            size="",
            folder=Path(temporary_folder),
            reward_folder=Path(temporary_folder),
            precision=precision,
            steps=steps or 0,
            batch_size=batch_size or (32 if is_gpu else 8),
            threads=threads,
            answers=answers,
            by_wall=is_gpu or threads > 1,
        )
        wanted = kinds or [*KINDS, SCALING]
        for name in size or (["L"] if is_gpu else ["S"]):
            for kind in (kind for kind in wanted if kind != SCALING):
                job = filled(common, kind, name)
                found = interleaved({each: (each, job) for each in variants(kind)}, rounds, errors.print)
                table += summarise(job, found, peak)
        for name in (size or (["L"] if is_gpu else ["XS", "S", "M"])) if SCALING in wanted else ():
            for trainer in TRAINERS:
                grown += scaling(filled(common, trainer, name), rounds, peak, errors.print)
    machine = {
        "date": datetime.now().astimezone().date().isoformat(),
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
        "precision": precision,
        "threads": threads,
        "clock": "wall" if is_gpu or threads > 1 else "CPU",
        "peak": peak,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }
    if as_json:
        print(json.dumps({"machine": machine, "rows": table, "scaling": grown}, indent=2))
    else:
        show(machine, table, grown)
    allowed = LARGEST_DIFFERENCE[precision]
    unequal = [row for row in table if counts(row) and row.get("difference", 0.0) > allowed]
    if unequal:
        names = ", ".join(f"{row['kind']} {row['size']} {row['variant']}" for row in unequal)
        errors.print(f"losses differ by more than {allowed}, so these figures do not count: {names}")
        sys.exit(1)


def filled(common: Job, kind: str, size: str) -> Job:
    """A job of a kind at a size, with the models that it needs and, unless they are given, its steps."""
    from benchmarks.ours import make_reward_model
    from benchmarks.workloads import SIZES, make_model

    folder, scored = common.folder / size, common.folder / f"{size}-reward"
    if not folder.exists():
        make_model(SIZES[size], folder)
        make_reward_model(folder, scored)
    job = common._replace(kind=kind, size=size, folder=folder, reward_folder=scored)
    return job if job.steps else job._replace(steps=STEPS[size][job.is_sampled])


def counts(row: dict[str, Any]) -> bool:
    """Whether a variant is to have our losses: not in another precision, nor on other batches."""
    return row["variant"] not in ("TRL as shipped", "TRL by length")


if __name__ == "__main__":
    typer.run(main)
