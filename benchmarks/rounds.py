"""Every variant in a process of its own, one after the other, round after round; and what that comes to."""

import gc
import multiprocessing
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.jobs import SEED, Clock, Job, Measured

Variant = Callable[[Job, Clock], None]
KINDS = ("sft", "reward", "dpo", "generate", "rloo", "ppo")
OURS = "Trueline"
COMPARED_STEPS = 20


def variants(kind: str) -> dict[str, Variant]:
    """The contestants by name; the first is what the ratio is to."""
    from benchmarks import ours, plain, theirs

    match kind:
        case "sft":
            return {
                "TRL": theirs.supervised,
                "TRL as shipped": partial(theirs.supervised, shipped=True),
                "TRL padding-free": theirs.tuned_supervised,
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
        case "rloo":
            return {
                "TRL": theirs.leave_one_out,
                "TRL as shipped": partial(theirs.leave_one_out, shipped=True),
                "TRL continuous batching": partial(theirs.leave_one_out, **theirs.CONTINUOUS),
                OURS: ours.online,
            }
        case "ppo":
            return {
                "plain PPO": plain.online,
                # Another algorithm: its time counts, not what it learns.
                f"{OURS}, critic on a shared backbone": partial(ours.online, critic="shared"),
                OURS: ours.online,
            }
        case _:
            return {"generate": plain.answers, OURS: ours.answers}


def work(kind: str, name: str, threads: int, orders: Connection) -> None:
    """Run a variant on the jobs that come, in a process that does nothing else."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(threads)
    run = variants(kind)[name]
    orders.send(None)
    while (job := orders.recv()) is not None:
        clock = Clock(job.warm_up)
        run(job, clock)
        orders.send(clock.measured())
        gc.collect()
        torch.cuda.empty_cache()  # the other processes use the same device


def interleaved(
    contestants: Mapping[str, tuple[str, Job]], rounds: int, tell: Callable[[str], None]
) -> dict[str, list[Measured]]:
    """Run all contestants once, then all again: what disturbs the machine for a while disturbs them alike.

    Args:
        contestants: variant and job of each, by the name they are reported under.
        rounds: how often each runs.
        tell: called with a line after every run.
    """
    spawning = multiprocessing.get_context("spawn")
    processes, pipes = [], {}
    for name, (variant, job) in contestants.items():
        pipes[name], there = spawning.Pipe()
        process = spawning.Process(target=work, args=(job.kind, variant, job.threads, there), daemon=True)
        process.start()
        processes.append(process)
        there.close()  # so that its death ends the wait for it
    for name, pipe in pipes.items():
        answer(name, pipe)  # nobody is to run while others still load their libraries
    found: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, (_, job) in contestants.items():
            pipes[name].send(job)
            found[name].append(answer(name, pipes[name]))
            tell(f"{job.kind} {job.size} round {number + 1} {name}: {seconds(job, found[name][-1]):.2f} s")
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return found


def answer(name: str, pipe: Connection) -> Any:  # noqa: ANN401
    """What a process has to say."""
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"{name} died: its error stands above") from None


def seconds(job: Job, run: Measured) -> float:
    """What counts of a run: CPU seconds, which bear a shared machine, where they tell the time."""
    return run.wall if job.by_wall else run.cpu


def summarise(job: Job, found: dict[str, list[Measured]], peak: float) -> list[dict[str, Any]]:
    """One row a variant: medians, ratio to the first, memory, and what there is to compare by."""
    table: list[dict[str, Any]] = []
    for name, runs in found.items():
        figures = [run.figures[job.warm_up :] for run in runs]
        units = [total(steps, "tokens") if job.is_sampled else 1.0 for steps in figures]
        taken = [seconds(job, run) / unit for run, unit in zip(runs, units, strict=True)]
        row: dict[str, Any] = {
            "kind": job.kind,
            "size": job.size,
            "precision": job.precision,
            "variant": name,
            "seconds": statistics.median(taken),  # of a token where answers are sampled, else of all counted steps
            "lowest": min(taken),
            "highest": max(taken),
            "memory": statistics.median(run.peak_memory for run in runs),
        }
        row["ratio"] = (table[0] if table else row)["seconds"] / row["seconds"]
        if job.is_sampled:
            row |= of_answers([step for steps in figures for step in steps])
            row["seconds_an_answer"] = row["seconds"] * row["length"]
        else:
            row |= of_batches(job, row["seconds"], peak)
            pairs = zip(runs[0].figures[:COMPARED_STEPS], found[OURS][0].figures[:COMPARED_STEPS], strict=True)
            row["difference"] = max(abs(one["loss"] - other["loss"]) for one, other in pairs)
        table.append(row)
    return table


def of_answers(steps: list[dict[str, float]]) -> dict[str, float]:
    """Describe what was sampled: all answers' mean length and, where they were scored, reward, KL and entropy."""
    scored = [name for name in ("reward", "kl", "entropy") if name in steps[0]]
    means = {name: statistics.fmean(step[name] for step in steps) for name in scored}
    return means | {"length": total(steps, "tokens") / total(steps, "answers")}


def of_batches(job: Job, taken: float, peak: float) -> dict[str, float]:
    """Relate the seconds of the counted steps to their tokens and to the arithmetic that they need."""
    items = counted_items(job)
    tokens, operations = (sum(column) for column in zip(*(needed(job, *item) for item in items), strict=True))
    flops = operations / taken
    return {"tokens": tokens, "seconds_a_token": taken / tokens, "flops": flops, "of_peak": flops / peak}


def needed(job: Job, prompt: int, answers: list[int]) -> tuple[int, float]:
    """Tokens of a row or pair, and the floating-point operations that a step needs for it.

    The prompt counts once, the backward pass twice the forward; DPO's reference is one forward pass more.
    """
    from benchmarks.workloads import SIZES, forward_operations

    forward = forward_operations(SIZES[job.size], prompt, answers, has_logits=job.kind != "reward")
    return prompt + sum(answers), (4 if job.kind == "dpo" else 3) * forward


def counted_items(job: Job) -> list[tuple[int, list[int]]]:
    """The rows or pairs of the counted steps, as the tokens of the prompt and of each answer."""
    from benchmarks.workloads import SIZES, Texts
    from tasks.learning.batches import training_batches

    if job.kind == "sft":
        rows = Texts(SIZES[job.size], seed=1).rows(job.rows)
        items = [(len(row.prompt), [len(row.completion)]) for row in rows]
    else:
        pairs = Texts(SIZES[job.size], seed=2).pairs(job.rows)
        items = [(len(pair.chosen.prompt), [len(row.completion) for row in pair]) for pair in pairs]
    order = [index for _, rows in training_batches(job.rows, job.batch_size, 1, SEED) for index in rows]
    return [items[index] for index in order[job.warm_up * job.batch_size :]]


def total(steps: list[dict[str, float]], name: str) -> float:
    """Add up a figure of some steps."""
    return sum(step[name] for step in steps)
