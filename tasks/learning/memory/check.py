"""More memory wanted than there is: a stage stops before it loads its models, and names what would fit."""

import logging
from pathlib import Path

from transformers import AutoConfig

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.learning import processes
from tasks.learning.memory.room import memory_of, needed
from tasks.learning.memory.savings import Plan, least_change
from tasks.learning.memory.stages import MemoryModel, RowLengths, Sharing
from tasks.learning.models.loading import device_of
from tasks.settings.params import Params

logger = logging.getLogger(__name__)

# Bytes of a stage, at most, for a byte of the files it starts from: four models in fp32, with gradients and moments.
MOST_A_FILE_BYTE = 4 * 16 / 2
WORTH_COUNTING = 0.25  # of the memory: where weights, gradients and moments take less, activations are left alone
GB = 10**9


def check_memory(stage: str, params: Params) -> None:
    """Compare what a stage must hold with the memory of its device; where that alone fits, warn of the peak.

    Raises:
        InputError: weights, gradients and optimiser alone do not fit; the sentence says what would.
    """
    folder, device = MODELS / ("base" if stage == "sft" else "sft"), device_of(params)
    has, on_gpu = memory_of(device), device.type == "cuda"
    if not folder.is_dir() or _size(folder) * MOST_A_FILE_BYTE < WORTH_COUNTING * has:
        return
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    lengths = row_lengths(params)
    between_passes = MemoryModel(config, lengths, on_gpu=on_gpu, counts_passes=False)
    sharded = processes.uses_fsdp()
    sharing = Sharing(processes.world_size(), sharded, sharded and on_gpu and processes.offloads_to_cpu())

    def must_hold(plan: Plan) -> int:
        return between_passes.stage(stage, plan.params, plan.sharing).resident

    asked = Plan(params, sharing, on_gpu)
    if (resident := must_hold(asked)) > has:
        found = least_change(asked, lambda plan: needed(must_hold(plan), on_gpu=on_gpu) <= has)
        raise InputError(
            f"{stage} needs {resident / GB:.1f} GB for weights, gradients and optimiser alone, and the {device.type} "
            f"has {has / GB:.1f} GB: {cure(found)}"
        )
    if resident > WORTH_COUNTING * has and processes.is_main():
        peak = MemoryModel(config, lengths, on_gpu=on_gpu).stage(stage, params, sharing).peak.total
        if peak > has:
            logger.warning(
                "%s may need %.1f GB, and the %s has %.1f GB: trueline plan says what would make it fit",
                stage,
                peak / GB,
                device.type,
                has / GB,
            )


def cure(found: Plan | None) -> str:
    """Say what to change."""
    if found is None:
        return "no setting makes it fit: take a smaller base model, or more devices"
    return f"trueline configure {' '.join(found.changes)} makes it fit"


def row_lengths(params: Params) -> RowLengths:
    """Take rows as long as they may be, three quarters of them answer."""
    row = min(params.validate_.max_tokens, params.runtime.max_tokens_per_micro_batch)
    return RowLengths(row, max(1, row // 4))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
