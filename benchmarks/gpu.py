"""`make gpu`: whether a GPU computes what it should, how fast we train there, and what TRL's best does.

Each part is a process of its own with a limit; parts for which no time is left are named as left out. It writes the
table in docs/benchmarks.md. Without a GPU `make gpu SIZE=xs` shows that all of it runs, and writes nothing there.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.gpu_checks import Check, checks, sharding_check, vllm_check
from benchmarks.gpu_report import PAGE, data_sheet_peak, section, written
from benchmarks.jobs import Job
from benchmarks.rounds import OURS, interleaved, summarise

SECONDS = 465.0  # for all parts; the rest of the 8 minutes is for the start, and for the peak at the end
FEWEST_SECONDS = 15.0  # with less no part is begun
CHILD = "--part"
CHECKS, SHARDING, COMPILED = "checks", "sharding", "sft compiled"
# Seconds of each part, of SECONDS in all.
LIMITS = {CHECKS: 120.0, "sft": 75.0, "dpo": 75.0, "reward": 75.0, "ppo": 90.0, SHARDING: 75.0, COMPILED: 120.0}
# The best of the others: TRL has no PPO.
BEST = {"sft": "TRL padding-free", "reward": "TRL", "dpo": "TRL precomputed", "ppo": "plain PPO"}
BATCH, ROWS_AT_ONCE, TOKENS = 64, 16, 65_536
CPU_BATCH, CPU_ROWS_AT_ONCE = 8, 4
THREADS = 8
LIBRARIES = ("torch", "transformers", "trl", "accelerate")


class Part(NamedTuple):
    """Work for one process."""

    kind: str
    size: str

    @property
    def name(self) -> str:
        """As tables name it."""
        return f"{self.kind} {self.size}"


def main(
    size: Annotated[list[str] | None, typer.Option(help="of workloads.SIZES; 1.5B and 0.5B unless named")] = None,
    seconds: Annotated[float, typer.Option(help="for all parts; their limits grow with it")] = SECONDS,
) -> None:
    """Check and measure this machine's GPU; exit code 1 where a check or a part fails."""
    import torch

    is_gpu, began = torch.cuda.is_available(), time.monotonic()
    sizes = [each.upper() for each in size or ["1.5B", "0.5B"]]
    if not is_gpu and not size:
        sys.exit("torch finds no GPU: make gpu SIZE=xs shows on a CPU that everything runs")
    with tempfile.TemporaryDirectory() as folder:
        found, left_out, failed = run_parts(parts(sizes), Path(folder), seconds)
    all_checks = [Check(**each["check"]) for each in found if "check" in each]
    rows = [each["row"] for each in found if "row" in each]
    machine = described(is_gpu=is_gpu) | {"seconds": time.monotonic() - began}
    for row in rows:
        if "flops" in row:
            row["of_peak"] = row["flops"] / machine["peak"]
    text = section(machine, all_checks, rows, left_out + failed)
    print(text)
    if is_gpu:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    sys.exit(bool(failed) or any(check.found is not None and not check.holds for check in all_checks))


def parts(sizes: list[str]) -> list[Part]:
    """All there is to do, the most wanted first; checks and sharding at the last and smallest size."""
    trained = [Part(kind, size) for size in sizes for kind in BEST]
    return [Part(CHECKS, sizes[-1]), *trained, Part(SHARDING, sizes[-1]), Part(COMPILED, sizes[0])]


def run_parts(wanted: list[Part], folder: Path, seconds: float) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Run parts one after the other; give what they found, which were left out for time, and which failed."""
    left_out, failed, until = [], [], time.monotonic() + seconds
    results = folder / "found.jsonl"
    results.touch()
    for part in wanted:
        limit = min(LIMITS[part.kind] * seconds / SECONDS, until - time.monotonic())
        if limit < FEWEST_SECONDS:
            left_out.append(f"{part.name} (no time left)")
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", CHILD, *part, str(folder)]
        code = ended(command, limit)
        if code is None:
            left_out.append(f"{part.name} (ended after {limit:.0f} s)")
        elif code:
            failed.append(f"{part.name} (failed, exit code {code})")
    found = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return found, left_out + [each["left_out"] for each in found if "left_out" in each], failed


def ended(command: list[str], limit: float) -> int | None:
    """Run a command with all processes it starts; its exit code, or None where they were killed after `limit` s."""
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | surroundings())
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it is not reaped, so no other group has its number
        process.wait()
        return None


def surroundings() -> dict[str, str]:
    """What all processes have in their environment."""
    quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TRL_EXPERIMENTAL_SILENCE": "1"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return quiet | offline | {"OMP_NUM_THREADS": str(threads())}


def threads() -> int:
    """Of torch in each process; two on a busy CPU wait for one another most of the time."""
    import torch

    return min(THREADS, os.cpu_count() or 1) if torch.cuda.is_available() else 1


def run_part(part: Part, folder: Path) -> None:
    """Do the work of a part, and add what it finds to the results as soon as it is there."""
    with (folder / "found.jsonl").open("a", encoding="utf-8", buffering=1) as results:

        def add(**found: Any) -> None:  # noqa: ANN401
            results.write(json.dumps(found) + "\n")

        if part.kind == SHARDING:
            add(check=sharding_check(part.size)._asdict())
            return
        job = job_for(part, folder)
        if part.kind == CHECKS:
            for check in checks(job):
                add(check=check._asdict())
            add(check=vllm_check()._asdict())
            return
        contestants = {name: (name, job) for name in ((OURS,) if job.compiled else (BEST[job.kind], OURS))}
        for row in measured(job, contestants, add):
            add(row=row | ({"variant": f"{OURS}, compiled"} if job.compiled else {}))


def measured(job: Job, contestants: dict[str, tuple[str, Job]], add: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Run the contestants once; where the other one dies, ours alone."""
    try:
        found = interleaved(contestants, 1, print)
    except SystemExit as error:
        if len(contestants) == 1 or str(error).startswith(OURS):
            raise
        add(left_out=f"{job.kind} {job.size}: {error}")
        found = interleaved({OURS: (OURS, job)}, 1, print)
    return summarise(job, found, 1.0)  # the peak is known at the end


def job_for(part: Part, folder: Path) -> Job:
    """The job of a part, with its models."""
    import torch

    from benchmarks.__main__ import filled

    batch, rows = (BATCH, ROWS_AT_ONCE) if torch.cuda.is_available() else (CPU_BATCH, CPU_ROWS_AT_ONCE)
    kind = "sft" if part.kind in (COMPILED, CHECKS) else part.kind
    common = Job(
        kind="",
        size="",
        folder=folder,
        reward_folder=folder,
        precision="bf16",
        steps=0,
        batch_size=batch,
        threads=threads(),
        tokens=TOKENS,
        by_wall=True,
        rows_at_once=None if kind == "sft" else rows,
        compiled=part.kind == COMPILED,
    )
    return filled(common, kind, part.size)


def described(*, is_gpu: bool) -> dict[str, Any]:
    """The machine: its name, its versions, and the most that it can do."""
    import torch

    from benchmarks.workloads import matrix_peak

    device = torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine()
    best = matrix_peak(torch.device("cuda" if is_gpu else "cpu"), torch.bfloat16)
    known = data_sheet_peak(device) if is_gpu else None
    commit = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False)
    versions = {"Python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    return {
        "date": datetime.now().astimezone().date().isoformat(),
        "device": device,
        "commit": commit.stdout.strip() or "unknown",
        "versions": versions | ({"CUDA": torch.version.cuda} if is_gpu else {}),
        "peak": known or best,
        "peak_from": "(dense bf16, data sheet)" if known else "(measured)",
        "measured_peak": best,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        run_part(Part(sys.argv[2], sys.argv[3]), Path(sys.argv[4]))
    else:
        typer.run(main)
