"""Will it fit: the memory of each stage by device, the settings that would make it fit, and tokens a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from flows.inspection.matrix_rate import matrix_rate
from tasks.common.errors import InputError
from tasks.learning.memory.check import GB, row_lengths
from tasks.learning.memory.flops import tokens_a_second
from tasks.learning.memory.launchers import sharing_of
from tasks.learning.memory.room import memory_of, needed
from tasks.learning.memory.savings import Plan, least_change
from tasks.learning.memory.stages import MemoryModel, RowLengths, StageMemory
from tasks.learning.models.loading import device_of
from tasks.settings.params import Params

CONFIG = "config.json"


class Devices(NamedTuple):
    """The devices that are planned for."""

    memory: float | None = None  # GB of each; None: that of this machine's device
    number: int = 1
    tflops: float | None = None  # of matrix products on each, in 10^12 a second; None: measured on this machine


HERE = Devices()


def read_shape(source: Path) -> PreTrainedConfig:
    """Read the configuration of a model, whose weights need not be there.

    Args:
        source: a folder with a config.json, or that file.

    Raises:
        InputError: there is none, or transformers cannot use it.
    """
    file = source / CONFIG if source.is_dir() else source
    if not file.is_file():
        raise InputError(f"{file} does not exist: give a model's {CONFIG}, or the folder that it lies in")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: transformers cannot use it ({str(error).splitlines()[0]}): correct it") from None
    return config


def memory_plan(
    params: Params, config: PreTrainedConfig, devices: Devices, lengths: RowLengths | None = None
) -> dict[str, Any]:
    """Predict the memory of every stage and, where it does not fit, the least change that does.

    Args:
        params: the settings.
        config: of the base model.
        devices: to fit into.
        lengths: of the rows; None: as long as the settings allow.

    Raises:
        InputError: the launcher's file is not there, or the passes of such a model cannot be counted.
    """
    lengths = lengths or row_lengths(params)
    on_gpu = devices.memory is not None or device_of(params).type == "cuda"
    has = memory_of(device_of(params)) if devices.memory is None else round(devices.memory * GB)
    model = MemoryModel(config, lengths, on_gpu=on_gpu)
    between_passes = MemoryModel(config, lengths, on_gpu=on_gpu, counts_passes=False)
    asked = Plan(params, sharing_of(params.runtime.launcher, devices.number), on_gpu)
    stages = list(model.stages(params, asked.sharing))

    def fits(plan: Plan) -> bool:
        # What cannot fit even without activations is not worth counting those.
        return all(
            _fits(each, has, on_gpu)
            for predicted in (between_passes, model)
            for each in predicted.stages(plan.params, plan.sharing)
        )

    found = None if all(_fits(each, has, on_gpu) for each in stages) else least_change(asked, fits)
    rate = devices.tflops * 1e12 if devices.tflops else _measured_rate(params, config, on_gpu)
    return {
        "device": {"memory_gb": round(has / GB, 1), "number": devices.number, "is_gpu": on_gpu},
        "rows": lengths._asdict(),
        "matrix_tflops": rate and round(rate / 1e12, 3),
        "stages": [
            {
                **_stage(each),
                "needs_gb": round(needed(each.peak.total, on_gpu=on_gpu) / GB, 2),
                "fits": _fits(each, has, on_gpu),
                "tokens_a_second": rate and round(tokens_a_second(each.stage, config, params, lengths, rate)),
            }
            for each in stages
        ],
        "fits": all(_fits(each, has, on_gpu) for each in stages),
        "change": found and {"settings": list(found.changes), "peaks_gb": _peaks(model, found)},
    }


def _fits(stage: StageMemory, has: int, on_gpu: bool) -> bool:
    return needed(stage.peak.total, on_gpu=on_gpu) <= has


def _stage(stage: StageMemory) -> dict[str, Any]:
    moments: Sequence[dict[str, Any]] = [
        {name: value if name == "name" else round(value / GB, 3) for name, value in moment._asdict().items()}
        for moment in stage.moments
    ]
    return {"stage": stage.stage, "peak_gb": round(stage.peak.total / GB, 3), "at": stage.peak.name, "moments": moments}


def _peaks(model: MemoryModel, plan: Plan) -> dict[str, float]:
    return {each.stage: round(each.peak.total / GB, 1) for each in model.stages(plan.params, plan.sharing)}


def _measured_rate(params: Params, config: PreTrainedConfig, on_gpu: bool) -> float | None:
    """The rate of this machine's device, unless the plan is for a GPU and there is none here."""
    device = device_of(params)
    if on_gpu and device.type != "cuda":
        return None
    return matrix_rate(config, params.runtime.precision, params.runtime.max_tokens_per_micro_batch, device)
