"""How our trainers' cost grows with data and with the model: seconds a token, and memory."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.jobs import Job
from benchmarks.rounds import OURS, interleaved, of_batches, seconds

TRAINERS = ("sft", "dpo")
TIMES = (1, 2, 4)


def scaling(
    job: Job, rounds: int, peak: float, tell: Callable[[str], None], times: Sequence[int] = TIMES
) -> list[dict[str, Any]]:
    """Train on once, twice and four times the data of a job, each in a process of its own; one row each."""
    # Half the job's steps are once the data: seven times that is enough to be trained on.
    jobs = {f"{count}x data": job._replace(steps=max(1, job.steps // 2) * count) for count in times}
    found = interleaved({name: (OURS, each) for name, each in jobs.items()}, rounds, tell)
    table = []
    for count, (name, each) in zip(times, jobs.items(), strict=True):
        taken = statistics.median(seconds(each, run) for run in found[name])
        table.append(
            {
                "kind": each.kind,
                "size": each.size,
                "precision": each.precision,
                "data": count,
                "seconds": taken,
                "memory": statistics.median(run.peak_memory for run in found[name]),
                **of_batches(each, taken, peak),
            }
        )
    return table
