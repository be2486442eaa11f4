"""Sums gradients in one process of several, and writes what it found to `gradients-RANK.json`."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from tasks.learning import processes
from tasks.learning.training import gradients
from tasks.learning.training.gradients import GradientSums

LAYERS = 4
# The rows of each process's micro-batches, by step: as many, fewer in one process, none in one process.
STEPS = [[[2.0], [3.0]], [[1.0, 5.0], [4.0]], [[6.0], []]]


def layers() -> nn.ModuleList:
    """Layers of two weights each, of which the first is never used."""
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(LAYERS))


def loss_of(model: nn.ModuleList, row: float) -> Tensor:
    return torch.stack(
        [layer(torch.tensor([row, float(place)]))[0] ** 2 for place, layer in enumerate(model)][1:]
    ).sum()


def expected(rows: Sequence[float]) -> list[list[float]]:
    """The gradients of all processes' rows, as one process has them."""
    model = layers()
    for row in rows:
        loss_of(model, row).backward()
    return [[0.0, 0.0] if each.grad is None else each.grad[0].tolist() for each in model.parameters()]


def run_out(_: Tensor) -> None:
    raise MemoryError


def accumulate(model: nn.ModuleList, sums: GradientSums, rows: Sequence[float]) -> None:
    for number, row in enumerate(rows, start=1):
        with sums.travelling() if number == len(rows) else nullcontext():
            loss_of(model, row).backward()


def main() -> None:
    processes.initialise(torch.device("cpu"))
    gradients.BYTES_OF_BUCKET = 8  # a bucket for each weight
    model, found = layers(), list[dict[str, object]]()
    sums = GradientSums(model.parameters())
    for runs_out in (False, True):
        for rows in STEPS:
            own = rows[processes.rank()]
            if runs_out and own:  # in the last pass, when two buckets are on their way
                handle = [*model.parameters()][2].register_post_accumulate_grad_hook(run_out)
                with pytest.raises(MemoryError):
                    accumulate(model, sums, own)
                handle.remove()
                model.zero_grad()
            accumulate(model, sums, own)
            early = sums._num_sent
            sums.finish()
            given = [each.grad[0].tolist() for each in model.parameters() if each.grad is not None]
            found.append({"early": early, "given": given, "expected": expected([*rows[0], *rows[1]])})
            model.zero_grad()
    Path(f"gradients-{processes.rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()
