"""Every variant in a process of its own, one after the other, round after round; and what that comes to."""

import multiprocessing
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.jobs import SEED, WARM_UP, Clock, Job, Measured

Variant = Callable[[Job, Clock], None]
KINDS = ("sft", "reward", "dpo", "generate")
OURS = "Trueline"
COMPARED_STEPS = 20


def variants(kind: str) -> dict[str, Variant]:
    """The contestants by name; the first of TRL's is what the ratio is to."""
    from benchmarks import ours, theirs

    match kind:
        case "sft":
            return {
                "TRL": theirs.supervised,
                "TRL as shipped": partial(theirs.supervised, shipped=True),
                "TRL padding-free": partial(theirs.supervised, padding_free=True, max_length=None),
                "TRL by length": partial(theirs.supervised, train_sampling_strategy="group_by_length"),
                OURS: ours.supervised,
            }
        case "reward":
            return {
                "TRL": theirs.preferences,
                "TRL as shipped": partial(theirs.preferences, shipped=True),
                OURS: ours.preferences,
            }
        case "dpo":
            return {
                "TRL": theirs.direct,
                "TRL as shipped": partial(theirs.direct, shipped=True),
                "TRL precomputed": partial(theirs.direct, precomputed=True),
                OURS: ours.direct,
            }
        case _:
            return {"generate": theirs.answers, OURS: ours.answers}


def work(kind: str, name: str, job: Job, orders: Connection) -> None:
    """Run a variant whenever asked to, in a process that does nothing else."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(job.threads)
    run = variants(kind)[name]
    while orders.recv():
        clock = Clock()
        run(job, clock)
        orders.send(clock.measured())


def interleaved(job: Job, names: list[str], rounds: int, tell: Callable[[str], None]) -> dict[str, list[Measured]]:
    """Run all variants once, then all again: what disturbs the machine for a while disturbs them alike."""
    spawning = multiprocessing.get_context("spawn")
    workers: dict[str, Connection] = {}
    for name in names:
        here, there = spawning.Pipe()
        spawning.Process(target=work, args=(job.kind, name, job, there), daemon=True).start()
        workers[name] = here
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        for name, worker in workers.items():
            worker.send(True)
            found[name].append(worker.recv())
            tell(f"{job.kind} {job.size} round {number + 1} {name}: {found[name][-1].cpu:.2f} CPU s")
    for worker in workers.values():
        worker.send(False)
    return found


def summarise(job: Job, found: dict[str, list[Measured]], peak: float) -> list[dict[str, Any]]:
    """One row a variant: medians, ratio to the first, arithmetic, memory, and how far its losses are from ours."""
    from benchmarks.workloads import SIZES, Texts, training_operations
    from tasks.learning.batches import training_batches

    size, first = SIZES[job.size], next(iter(found.values()))
    operations = None
    if job.kind == "sft":  # pairs share their prompts, so that counting would have to say whose work is counted
        order = [index for _, rows in training_batches(job.rows, job.batch_size, 1, SEED) for index in rows]
        rows = Texts(size, seed=1).rows(job.rows)
        operations = training_operations(size, [rows[index] for index in order[WARM_UP * job.batch_size :]])
    table = []
    for name, runs in found.items():
        unit = [run.cpu / (sum(run.figures[WARM_UP:]) if job.kind == "generate" else 1) for run in runs]
        base = [run.cpu / (sum(run.figures[WARM_UP:]) if job.kind == "generate" else 1) for run in first]
        seconds = statistics.median(unit)
        row = {
            "kind": job.kind,
            "size": job.size,
            "precision": job.precision,
            "variant": name,
            "seconds": seconds,
            "lowest": min(unit),
            "highest": max(unit),
            "ratio": statistics.median(base) / seconds,
            "memory": statistics.median(run.peak_memory for run in runs),
        }
        if operations:
            row |= {"flops": operations / seconds, "of_peak": operations / seconds / peak}
        if job.kind != "generate":
            pairs = zip(runs[0].figures[:COMPARED_STEPS], found[OURS][0].figures[:COMPARED_STEPS], strict=True)
            row["difference"] = max(abs(one - other) for one, other in pairs)
        table.append(row)
    return table
