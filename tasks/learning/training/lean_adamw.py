"""AdamW with fewer bytes a weight: moments in 8 bits, and weights that lie in bf16.

A weight in bf16 has steps of 0.4 % or more, and nearest rounding loses updates smaller than half of one. Stochastic
rounding goes up with the probability of what is cut off, so their mean arrives. Its random numbers are a function of
seed, step and weight: no state of a generator has to be saved.

Sources: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", with the kernels of bitsandbytes; Gupta
et al. 2015, "Deep Learning with Limited Numerical Precision".
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tasks.learning.models.quantised import bitsandbytes_for
from tasks.learning.seeds import seed_for
from tasks.settings.choices import OptimiserName

BLOCK_SIZE = 256  # numbers of a moment that share a scale: that of the kernels
MIN_QUANTISED = 4096  # smaller weights (norms, biases) keep moments in fp32, as in bitsandbytes
CUT_BITS = 16  # of fp32, which bf16 has not


class LeanAdamW(torch.optim.Optimizer):
    """AdamW that takes one weight after the other; only that one is in fp32 for the moment."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, moments: OptimiserName, epsilon: float, seed: int = 0
    ) -> None:
        """Prepare to optimise groups of weights, which have their own decay.

        Args:
            groups: as torch's optimisers take them.
            moments: adamw_8bit has both moments of large weights in 8 bits.
            epsilon: of the denominator.
            seed: of stochastic rounding.

        Raises:
            InputError: bitsandbytes is wanted and not installed.
        """
        super().__init__(groups, {"lr": 0.0, "betas": (0.9, 0.999), "eps": epsilon})
        self._seed = seed
        self._library = bitsandbytes_for("runtime.optimiser adamw_8bit") if moments == "adamw_8bit" else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step with the gradients that there are."""
        weights = [(group, weight) for group in self.param_groups for weight in group["params"]]
        for number, (group, weight) in enumerate(weights):
            if weight.grad is None:
                continue
            state = self.state[weight] or self._begun(weight)
            state["step"] = state["step"].cpu()  # where it is read; restored, it lies with the weight
            value = weight.float()  # itself where it lies in fp32
            self._update(value, weight.grad.float(), state, group)
            if weight.dtype == torch.bfloat16:
                seed = seed_for(self._seed, f"rounding of weight {number}", int(state["step"]))
                weight.copy_(stochastically_rounded(value, seed))

    def _begun(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        moments = ("exp_avg", "exp_avg_sq")
        state["step"] = torch.zeros(())
        if self._library and weight.numel() >= MIN_QUANTISED:
            scales = math.ceil(weight.numel() / BLOCK_SIZE)
            for moment in moments:
                state[moment] = torch.zeros_like(weight, dtype=torch.uint8)
                state[f"{moment}_scale"] = torch.zeros(scales, device=weight.device)
        else:
            for moment in moments:
                state[moment] = torch.zeros_like(weight, dtype=torch.float32)
        return state

    def _update(self, value: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
        if "exp_avg_scale" not in state:
            moments = [state["exp_avg"]], [state["exp_avg_sq"]]
            adamw(
                [value],
                [gradient],
                *moments,
                [],
                [state["step"]],
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=decay,
                eps=group["eps"],
                maximize=False,
            )
            return
        assert self._library is not None
        state["step"] += 1  # as torch's function does
        self._library.optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            value,
            state["exp_avg"],
            state["exp_avg_sq"],
            beta1,
            beta2,
            0.0,
            0.0,
            group["eps"],
            int(state["step"]),
            rate,
            _levels(self._library, True, value.device),
            _levels(self._library, False, value.device),
            state["exp_avg_scale"],
            state["exp_avg_sq_scale"],
            weight_decay=decay,
        )


def stochastically_rounded(values: Tensor, seed: int) -> Tensor:
    """Round finite fp32 values to bf16, up or down with the probabilities that make the mean exact."""
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randint(1 << CUT_BITS, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = values.view(torch.int32) + noise  # a carry goes on into the next number away from 0
    return (bits & (-1 << CUT_BITS)).view(torch.float32).bfloat16()


@cache
def _levels(library: Any, signed: bool, device: torch.device) -> Tensor:  # noqa: ANN401
    """The numbers that 8 bits stand for: more of them near 0."""
    levels: Tensor = library.create_dynamic_map(signed=signed).to(device)
    return levels
