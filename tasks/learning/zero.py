"""Weights, gradients and optimiser state in shards by DeepSpeed's ZeRO-3, which can keep the optimiser's in CPU memory.

DeepSpeed is asked for that and no more: the loop, the schedule, the checks and the checkpoints stay what they are.

Source: Rajbhandari et al. 2020, "ZeRO"; Ren et al. 2021, "ZeRO-Offload".
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from tasks.errors import InputError
from tasks.learning import ranks
from tasks.learning.forward import unwrapped

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
_engines: "WeakKeyDictionary[nn.Module, DeepSpeedEngine]" = WeakKeyDictionary()


class ZeroOptimiser(torch.optim.Optimizer):
    """AdamW over a model that it has cut into shards; its own state is told, and taken, as whole tensors.

    Gradients are summed over the processes, as `ranks.add_gradients` does it for whole models.
    """

    def __init__(self, model: nn.Module, adamw: torch.optim.AdamW) -> None:
        """Cut a model's weights, in place, and have `adamw`, made for it while it was whole, work on this process's."""
        super().__init__([dict(group) for group in adamw.param_groups], adamw.defaults)
        self._adamw = adamw
        _engines[model] = engine = _engine(model, adamw)
        self._zero = engine.optimizer
        # What DeepSpeed gives is the mean over n processes. Told that losses were scaled by 1/n, it takes their sum.
        self._zero.loss_scale = 1 / ranks.count()
        # It compares the order of layers among processes in order to read ahead; ours need not keep step everywhere.
        self._zero.parameter_offload.fwd_pre_hook.remove()
        unwrapped(model).base_model.register_forward_hook(self._await_backward)

    @property
    def _weights(self) -> list[nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def clip(self, largest_norm: float) -> float:
        """Have the next step clip the gradient to a norm; returns its norm before."""
        from deepspeed.utils import safe_get_local_grad

        self._zero.clip_grad = largest_norm
        square = torch.stack([safe_get_local_grad(weight).square().sum() for weight in self._weights]).sum()
        ranks.add_up(square)
        return float(square.sqrt()) * ranks.count()

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Take a step with what the backward passes since the last one have added up."""
        for group, its in zip(self.param_groups, self._adamw.param_groups, strict=True):
            its["lr"] = group["lr"]
        self._zero.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Begin the next sum of gradients."""
        self._zero.zero_grad(set_to_none)
        self._zero.grad_partitions_flat_buffer.zero_()  # else a weight that no pass uses keeps an earlier gradient

    def state_dict(self) -> dict[str, Any]:
        """Give what AdamW's own would be in one process; all processes take part."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found = super().state_dict()
        for shards in list(self._adamw.state.values())[:1]:  # none before the first step
            for number, weight in enumerate(self._weights):
                moments = {name: safe_get_full_optimizer_state(weight, name).view(_shape(weight)) for name in MOMENTS}
                found["state"][number] = {"step": shards["step"].clone(), **moments}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state that AdamW had in one process or in several."""
        from deepspeed.utils import safe_set_local_optimizer_state

        for flat in self._zero.fp32_partitioned_groups_flat if state_dict["state"] else ():
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            self._adamw.state[flat] = {"step": state_dict["state"][0]["step"].clone(), **moments}
        for number, saved in state_dict["state"].items():
            weight = self._weights[number]
            for name in MOMENTS:
                safe_set_local_optimizer_state(weight, cut_like(saved[name], weight), name)

    def _await_backward(self, _body: nn.Module, _inputs: object, output: ModelOutput) -> None:
        """Have DeepSpeed told when a backward pass begins: it knows only of those of models that it calls itself."""
        states = output["last_hidden_state"]
        if states.requires_grad:
            self._zero.clear_backward_seen_flag()
            states.register_hook(self._begin_backward)

    def _begin_backward(self, _gradient: Tensor) -> None:
        self._zero.backward_prologue()
        self._zero.enter_backward()
        self._zero.queue_post_backward_callback()


def _engine(model: nn.Module, adamw: torch.optim.AdamW) -> "DeepSpeedEngine":
    import deepspeed
    from accelerate.utils import DeepSpeedPlugin

    asked = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    devices = {asked.get(name, {}).get("device", "none") for name in ("offload_optimizer", "offload_param")}
    if asked["stage"] != 3 or not devices <= {"none", "cpu"}:
        cure = "zero_stage must be 3, and offload devices none or cpu, as in infra/accelerate/zero3.yaml"
        raise InputError(f"runtime.launcher: {cure}")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": asked,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
    }
    engine: DeepSpeedEngine = deepspeed.initialize(model=model, optimizer=adamw, config=config)[0]
    return engine


def together(model: nn.Module) -> AbstractContextManager[object]:
    """Put a model together, if it is cut, for a block in which processes need not keep step; no gradients there."""
    if model not in _engines:
        return nullcontext()
    from deepspeed.runtime.zero import unwrap_model_for_generation

    whole_for_a_while: AbstractContextManager[object] = unwrap_model_for_generation(_engines[model])
    return whole_for_a_while


def release(model: nn.Module) -> None:
    """Let go of what DeepSpeed holds for a cut model, which cannot be used after."""
    if model in _engines:
        _engines.pop(model).destroy()


def is_shard(weight: Tensor) -> bool:
    """Whether a weight is one of a cut model."""
    return hasattr(weight, "ds_tensor")


def whole(weight: Tensor) -> Tensor:
    """Put a weight together, if it is cut; all processes take part, and each gets it."""
    if not is_shard(weight):
        return weight
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight]):
        return weight.detach().clone()


def set_to(weight: Tensor, values: Tensor) -> None:
    """Give a cut weight, and the copy of it that the optimiser works on, the values of a whole tensor."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_local_fp32_param

    with GatheredParameters([weight], modifier_rank=0):
        weight.copy_(values)
    safe_set_local_fp32_param(weight, cut_like(values, weight))


def cut_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Give this process's shard of a whole tensor: a stretch of its numbers, the last one padded."""
    size = cast("Tensor", weight.ds_tensor).numel()  # type: ignore[attr-defined]
    padded = functional.pad(tensor.flatten(), (0, size * ranks.count() - tensor.numel()))
    return padded[size * ranks.number() : size * (ranks.number() + 1)]


def _shape(weight: Tensor) -> Sequence[int]:
    return cast("Sequence[int]", weight.ds_shape)  # type: ignore[attr-defined]
