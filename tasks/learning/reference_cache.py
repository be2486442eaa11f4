"""Cache of reference log-probabilities of answers, under a key of all that their bits follow from.

A run that is begun again, is resumed from a checkpoint, or has other settings of the loss finds the log-probabilities
in `.trueline/references`: the same bits that it would compute, so it ends with the same bytes.
"""

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from tasks.common.files import STATE, hash_files, replacing
from tasks.common.full_disk import writing
from tasks.common.progress import Bar
from tasks.data.encoding.tokens import Encoded
from tasks.learning import processes
from tasks.learning.batches import Batch, collate
from tasks.learning.models.forward import compute_device, compute_dtype
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.models.quantised import quantised_in
from tasks.learning.processes import MicroBatch

FOLDER = STATE / "references"
MAX_ENTRIES = 8  # entries of a number an answer; a run has two or four, of its training and its held-out rows
LOGPS = "logps"
LARGEST_FIRST_RATIO = 1e-3  # nats an answer
LARGEST_FIRST_RATIO_IN_BF16 = 0.05  # nats a token of it
Item = Sequence[Encoded]  # answers that one loss compares: a pair, or a single one

logger = logging.getLogger(__name__)


def collate_items(items: Sequence[Item], device: torch.device | str) -> Batch:
    """Lay the first answers of N items side by side, then the second ones, and so on: one batch of W x N rows."""
    return collate([row for rows in zip(*items, strict=True) for row in rows], device)


def item_logps(policy: nn.Module, batch: Batch, width: int) -> Tensor:
    """Log-probability of every completion of such a batch, summed over its tokens, in fp32: (W, N)."""
    return completion_log_probs(policy, batch).sum(dim=1).view(width, -1)


def check_first_ratios(policy: nn.Module, logps: Tensor, reference: Tensor, lengths: Tensor) -> None:
    """Before the first step policy and reference are one model, so every log-ratio is 0 but for rounding.

    In bf16 that is large where a micro-batch is not the one that the reference was computed in: smaller, after memory
    did not suffice.

    Args:
        policy: what is trained.
        logps: (N,) of completions, under the policy.
        reference: (N,) under the reference.
        lengths: (N,) tokens of the completions.

    Raises:
        AssertionError: a ratio is larger: the reference is another model.
    """
    is_exact = compute_dtype(policy) == torch.float32
    ratios = (logps.detach() - reference).abs() / (1 if is_exact else lengths.to(logps.device))
    if (largest := ratios.max().item()) > (LARGEST_FIRST_RATIO if is_exact else LARGEST_FIRST_RATIO_IN_BF16):
        raise AssertionError(f"log-ratios of {largest} before the first step: policy and reference differ")


@torch.no_grad()
def all_logps(
    policy: nn.Module,
    items: Sequence[Item],
    groups: Sequence[MicroBatch],
    *,
    title: str,
) -> Tensor:
    """Log-probabilities of the completions of N items, in fp32: (W, N), where an item has W answers.

    Args:
        policy: the model.
        items: all of them: pairs, or single answers.
        groups: this rank's micro-batches; the processes have every item once.
        title: names the progress bar.
    """
    device = compute_device(policy)
    width = len(items[0])
    found = torch.zeros(width, len(items), device=device)
    with Bar(title, len(items), "item") as bar:
        for indices, weight in groups:
            batch = collate_items([items[index] for index in indices], device)
            logps = item_logps(policy, batch, width)
            if weight:
                found[:, indices] = logps
                bar.update(len(indices))
    processes.all_reduce(found)
    return found


class ReferenceCache:
    """What the model of a folder says of answers."""

    def __init__(self, folder: Path, *, are_compiled: bool = False) -> None:
        """Ask the model of a folder, whose layers torch has compiled or not."""
        self._folder, self._are_compiled = folder, are_compiled

    def logps(
        self,
        policy: nn.Module,
        items: Sequence[Item],
        groups: Sequence[MicroBatch],
        *,
        title: str,
    ) -> Tensor:
        """Find what `all_logps` gives of the reference, or compute and keep it; the first process finds it for all.

        Args:
            policy: still the model of the folder; adapters that have learned nothing add exactly 0.
            items: as in `all_logps`.
            groups: as in `all_logps`.
            title: as in `all_logps`.
        """
        device = compute_device(policy)
        digests = processes.gathered([_digest(items, groups)])
        key = self._key(policy, digests) if processes.is_main() else ""
        file = FOLDER / f"{key}.safetensors"
        found = processes.gathered(_read(file, key) if processes.is_main() else [])
        if found:
            return found[0].to(device)
        values = all_logps(policy, items, groups, title=title)
        if processes.is_main():
            _write(file, key, values)
        return values

    @cached_property
    def _hash(self) -> str:
        return hash_files(self._folder)

    def _key(self, policy: nn.Module, digests: Sequence[str]) -> str:
        """Hash all that the bits follow from: model, items, micro-batches, code and arithmetic."""
        device = compute_device(policy)
        on_cuda = device.type == "cuda"
        follow_from = {
            "model": self._hash,
            "items": digests,  # of each rank, in its micro-batches
            "code": [hash_files(file) for file in sorted(Path(__file__).parent.rglob("*.py"))],
            "libraries": [torch.__version__, transformers.__version__],
            "device": torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability(),
            "precision": str(compute_dtype(policy)),
            "quantised": quantised_in(policy),
            "compiled": self._are_compiled,
            "threads": torch.get_num_threads(),
        }
        return hashlib.sha256(json.dumps(follow_from).encode()).hexdigest()


def _digest(items: Sequence[Item], groups: Sequence[MicroBatch]) -> str:
    """Hash the token ids of groups of items; lengths stand before what they count, so no two contents read alike."""
    digest = hashlib.sha256()
    for indices, _ in groups:
        digest.update(array("q", [len(indices), *indices]))
        for row in (row for index in indices for row in items[index]):
            digest.update(array("q", [len(row.prompt), len(row.completion), *row.prompt, *row.completion]))
    return digest.hexdigest()


def _read(file: Path, key: str) -> list[Tensor]:
    """Give the values of an entry, or nothing where there is none or it is damaged."""
    if not file.exists():
        return []
    try:
        with safe_open(file, "pt") as entry:
            values = entry.get_tensor(LOGPS)
            is_intact = entry.metadata() == {"seal": _seal(key, values)}
    except Exception:  # a damaged archive raises whatever its first broken byte leads to
        is_intact = False
    if not is_intact:
        logger.warning("%s is damaged: computed again", file)
        return []
    file.touch()  # the entries that go are those not used for longest
    return [values]


def _write(file: Path, key: str, values: Tensor) -> None:
    """Keep an entry, and of the others the newest; what killed runs left half written goes with the old ones."""
    content = values.cpu()
    with replacing(file) as draft, writing(file):
        save_file({LOGPS: content}, draft, metadata={"seal": _seal(key, content)})
    for old in sorted(FOLDER.iterdir(), key=lambda path: path.stat().st_mtime)[:-MAX_ENTRIES]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _seal(key: str, values: Tensor) -> str:
    """Hash an entry's key and tensor, by which a damaged entry is known."""
    return hashlib.sha256(key.encode() + save({LOGPS: values})).hexdigest()
