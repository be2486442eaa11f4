"""One step of optimisation: learning rate, clipped gradient, and a halt before a NaN can reach the weights."""

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

from tasks.common.errors import InputError, is_out_of_memory
from tasks.learning import processes
from tasks.learning.models.loading import device_of
from tasks.learning.sharding import is_cut, whole
from tasks.settings.choices import Schedule
from tasks.settings.params import Params


def make_accelerator(params: Params) -> Accelerator:
    """Device placement, mixed precision and backward passes as the settings say."""
    precision = "bf16" if params.runtime.precision == "bf16" else "no"
    return Accelerator(mixed_precision=precision, cpu=device_of(params).type == "cpu")


def adamw(model: nn.Module, *, weight_decay: float = 0.0, epsilon: float = 1e-5) -> torch.optim.Optimizer:
    """AdamW with betas 0.9 and 0.999 over the weights that learn; vectors (biases, norms) do not decay.

    Source: Loshchilov and Hutter 2019; the epsilon of 1e-5 is that of Huang et al. 2024 for RLHF.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    # The rate is set anew at every step; fused is several times faster than the default on a CPU.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, eps=epsilon, fused=True)


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule, warmup_ratio: float = 0.0) -> float:
    """Learning rate of a step, counted from 1: it rises to `peak` over a share of the steps, then follows the schedule.

    Linear and cosine reach 0 just after the last step, so that no step is wasted on a rate of 0.
    """
    rising = math.ceil(warmup_ratio * steps)
    if step <= rising:
        return peak * step / rising
    progress = (step - 1 - rising) / (steps - rising)
    match schedule:
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return peak


def check_finite(step: int, figures: Mapping[str, float], kept: str) -> None:
    """Stop training where a loss or a gradient norm is no longer a number.

    Args:
        step: the step, counted from 1.
        figures: what is looked at, by name.
        kept: which checkpoint is kept and where, as a clause.

    Raises:
        InputError: naming the step, the first figure that is NaN or infinite, the checkpoint and the cure.
    """
    for name, value in figures.items():
        if not math.isfinite(value):
            cure = "lower the learning rate or max_grad_norm in params.yaml, or look for broken rows"
            raise InputError(f"training stopped at step {step}: the {name} is {value}; {kept}; {cure}")


def update(
    accelerator: Accelerator,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    step: int,
    loss: float,
    learning_rate: float,
    max_grad_norm: float,
    kept: str,
) -> float:
    """Clip the accumulated gradient, check it, take one step with it and clear it; returns its norm before clipping.

    Raises:
        InputError: loss or gradient norm is not finite; the weights have not been touched. Or memory does not suffice
            for the step, which cannot be tried again: a part of it may be taken, and other processes are past it.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    processes.add_gradients(
        weight for weight in weights if not is_cut(weight)
    )  # shards were summed in the backward pass
    norm = float(whole({"norm": accelerator.clip_grad_norm_(weights, max_grad_norm)})["norm"])
    check_finite(step, {"loss": loss, "gradient norm": norm}, kept)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    try:
        optimiser.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cure = "train adapters (lora.rank), or share its state out (infra/accelerate/fsdp.yaml)"
        raise InputError(f"out of memory in the optimiser's step {step}; {kept}; {cure}") from error
    optimiser.zero_grad()
    return norm
