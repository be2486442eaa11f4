"""One optimiser step: summed losses, learning rate, clipped gradient, and a stop before a NaN reaches the weights."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasks.common.errors import InputError, is_out_of_memory
from tasks.learning import processes
from tasks.learning.models.loading import device_of
from tasks.learning.sharding import whole
from tasks.learning.training.gradients import GradientSums
from tasks.learning.training.lean_adamw import LeanAdamW
from tasks.settings.choices import OptimiserName, Schedule
from tasks.settings.params import Params

RATE_FACTOR = "rate_factor"  # of a group of weights: its learning rate over that of the step


def make_accelerator(params: Params) -> Accelerator:
    """Device placement and backward passes as the settings say; models know their precision themselves."""
    return Accelerator(cpu=device_of(params).type == "cpu")


def adamw(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    epsilon: float = 1e-5,
    head: nn.Module | None = None,
    head_factor: float = 1.0,
    moments: OptimiserName = "adamw",
    seed: int = 0,
) -> torch.optim.Optimizer:
    """AdamW with betas 0.9 and 0.999 over the trainable weights; vectors (biases, norms) do not decay.

    The learning rate of the weights in `head`, a part of the model, is `head_factor` times that of the others. With
    `moments` adamw_8bit, or weights in bf16, it is `LeanAdamW`, which rounds weights at random, by `seed`.

    Raises:
        InputError: `LeanAdamW` would have to work on shards, or lacks its library.

    Source: Loshchilov and Hutter 2019; the epsilon of 1e-5 is that of Huang et al. 2024 for RLHF.
    """
    of_head = set() if head is None else {id(each) for each in head.parameters()}
    groups: list[dict[str, Any]] = []
    for factor, is_of_head in ((1.0, False), (head_factor, True)):
        weights = [each for each in model.parameters() if each.requires_grad and (id(each) in of_head) == is_of_head]
        groups += [
            {"params": [each for each in weights if each.ndim >= 2], "weight_decay": weight_decay, RATE_FACTOR: factor},
            {"params": [each for each in weights if each.ndim < 2], "weight_decay": 0.0, RATE_FACTOR: factor},
        ]
    groups = [group for group in groups if group["params"]]
    in_bf16 = any(weight.dtype == torch.bfloat16 for group in groups for weight in group["params"])
    if moments == "adamw_8bit" or in_bf16:
        if processes.uses_fsdp():
            raise InputError(
                "params.yaml: weights in bf16 and moments in 8 bits are not sharded: set runtime.weights to fp32 and "
                "runtime.optimiser to adamw, or start by python -m or infra/accelerate/ddp.yaml"
            )
        return LeanAdamW(groups, moments=moments, epsilon=epsilon, seed=seed)
    # The rate is set anew at every step; fused is several times faster than the default on a CPU.
    return torch.optim.AdamW(groups, lr=0.0, eps=epsilon, fused=True)


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


class LossSums:
    """The gradient and the metrics of a step, summed over its micro-batches.

    Metrics stay on their device until the step ends: to read one waits for all that the device still computes.
    """

    def __init__(self, accelerator: Accelerator, gradients: GradientSums) -> None:
        """Begin at zero; the gradients of the weights, which `gradients` sums, must be zero too."""
        self._accelerator, self._gradients = accelerator, gradients
        self._sums: dict[str, Tensor] = {}  # in fp64, as Python's own numbers

    def backward(self, losses: Mapping[str, Tensor], weight: float, *, is_last: bool) -> None:
        """Add the gradient of losses["loss"] and the values of all entries, times the micro-batch's weight.

        The gradients of this rank's last micro-batch of a step are sent to the others while they are found.
        """
        with self._gradients.travelling() if is_last else nullcontext():
            self._accelerator.backward(weight * losses["loss"])
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value.detach().double()

    def over_ranks(self) -> dict[str, float]:
        """Give the metrics, summed over all processes too, as the gradients are from now on."""
        self._gradients.finish()
        values = torch.stack([*self._sums.values()]).tolist() if self._sums else []
        return processes.summed(dict(zip(self._sums, values, strict=True)))


def check_finite(step: int, metrics: Mapping[str, float], last_checkpoint: str) -> None:
    """Stop training where a loss or a gradient norm is not finite.

    Args:
        step: from 1.
        metrics: what is checked, by name.
        last_checkpoint: which checkpoint is saved and where, as a clause.

    Raises:
        InputError: naming the step, the first metric that is NaN or infinite, the checkpoint and the cure.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            cure = "lower the learning rate or max_grad_norm in params.yaml, or look for broken rows"
            raise InputError(f"training stopped at step {step}: the {name} is {value}; {last_checkpoint}; {cure}")


def update(
    accelerator: Accelerator,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    step: int,
    loss: float,
    learning_rate: float,
    max_grad_norm: float,
    last_checkpoint: str,
) -> float:
    """Clip the accumulated gradient, check it, take one step with it and clear it; returns its norm before clipping.

    Raises:
        InputError: loss or gradient norm is not finite; the weights have not been touched. Or memory does not suffice
            for the step, which cannot be tried again: a part of it may be taken, and other processes are past it.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    norm = float(whole(accelerator.clip_grad_norm_(weights, max_grad_norm)))
    check_finite(step, {"loss": loss, "gradient norm": norm}, last_checkpoint)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group.get(RATE_FACTOR, 1.0)
    try:
        optimiser.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cure = (
            "set runtime.optimiser to adamw_8bit, train adapters (lora.rank), or shard its state "
            "(infra/accelerate/fsdp.yaml, fsdp_offload.yaml)"
        )
        raise InputError(f"out of memory in optimiser step {step}; {last_checkpoint}; {cure}") from error
    optimiser.zero_grad()
    return norm
