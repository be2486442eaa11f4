"""`python -m benchmarks.offload`: a few steps of SFT with and without FSDP's offload to the CPU, and what each holds.

Each run is started by accelerate: it trains, samples with gathered weights, and reads rows with the full model.
"""

import json
import os
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import distributed

from benchmarks.jobs import Clock, Job, peak_memory
from benchmarks.ours import prepared, trainer_for
from benchmarks.workloads import SIZES, Texts, make_model
from tasks.data.encoding.tokens import load_tokenizer
from tasks.learning import processes
from tasks.learning.batches import collate
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import load_policy
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.sampling.sampler import generate
from tasks.learning.sharding import unsharded
from tasks.sft import sft_training_loop

ACCELERATE = Path(__file__).parents[1] / "infra" / "accelerate"
TOLERANCE = 1e-3  # of losses and log-probabilities, relative: AdamW and clipping round otherwise on a CPU
CHILD = "--run"


def main(
    size: Annotated[str, typer.Option(help="XS, S, M or L")] = "L" if torch.cuda.is_available() else "XS",
    count: Annotated[int, typer.Option(help="processes; one without offload is not sharded")] = 1,
    steps: Annotated[int, typer.Option(help="of SFT, 8 rows each")] = 5,
) -> None:
    """Compare infra/accelerate/fsdp.yaml with fsdp_offload.yaml; exit code 1 if results differ by more."""
    found, largest = compared(size, count, steps)
    print(f"largest relative difference: {largest:.2g} (at most {TOLERANCE:g})")
    for name, each in found.items():
        print(f"{name}: {each['device']}, peak {each['memory']:.0f} MiB")
    sys.exit(largest > TOLERANCE)


def compared(size: str, count: int, steps: int) -> tuple[dict[str, dict[str, Any]], float]:
    """Train with and without offload, and give what each found and the largest relative difference between them."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(SIZES[size], Path(folder) / "policy")
        found = {config: started(config, count, folder, size, steps) for config in ("fsdp", "fsdp_offload")}
    plain, offloaded = (chain(each["losses"], each["logps"]) for each in found.values())
    return found, max(abs(one - other) / abs(one) for one, other in zip(plain, offloaded, strict=True))


def started(config: str, count: int, folder: str, size: str, steps: int) -> dict[str, Any]:
    """Train through accelerate, and give what the first process found."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"{ACCELERATE / config}.yaml"]
    command += ["--num_processes", str(count), "-m", "benchmarks.offload", CHILD, folder, size, str(steps)]
    subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    return found


def train(folder: Path, size: str, steps: int) -> None:
    """Train as one process of several; the first writes what it found."""
    job = Job("sft", size, folder / "policy", folder, "fp32", steps=steps)
    params = prepared(job)
    policy, clock = load_policy(job.folder, params, trainable=True), Clock(0)
    rows = Texts(SIZES[size], seed=1).rows(job.rows)
    sft_training_loop(trainer := trainer_for(job, clock, policy, [row.length for row in rows]), policy, rows)
    memory = peak_memory()
    with unsharded(policy):
        generate(
            policy,
            load_tokenizer(job.folder),
            [[5, 6, 7]],
            max_new_tokens=8,
            temperature=1.0,
            seed=0,
            max_concurrent_sequences=1,
        )
    device = compute_device(policy)
    with torch.no_grad():
        logps = completion_log_probs(policy, collate(rows[:4], device))
    if processes.is_main():
        found = {
            "losses": [row["loss"] for row in trainer.curve.rows],
            "logps": logps.sum(dim=1).tolist(),
            "device": str(device),
            "memory": memory,
        }
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        typer.run(main)
