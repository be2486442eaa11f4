"""Models of any family: loading, adapters, and the scalar head.

Every model stays in evaluation mode, in training too: dropout off, so that the policy, its reference and the sampled
log-probabilities agree (Huang et al. 2024, "The N+ implementation details of RLHF with PPO").
"""

import logging
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers import logging as transformers_logging

from tasks.common.cpus import too_many_threads
from tasks.common.errors import InputError
from tasks.data.base_model.mismatches import Mismatches, load_with_mismatches, refuse_mismatches
from tasks.data.base_model.soundness import check_sound
from tasks.data.base_model.weights import read_tensors
from tasks.data.encoding.context import usable_context
from tasks.learning import processes
from tasks.learning.models.compiling import compile_layers
from tasks.learning.models.forward import (
    compute_device,
    has_adapters,
    pack_if_exact,
    recompute_layers,
    set_compute_dtype,
    unwrapped,
)
from tasks.learning.models.precision import (
    DTYPES,
    SCALAR_HEAD,
    exactly,
    round_frozen,
    round_layer,
    round_trained,
    untied_layers,
)
from tasks.learning.models.quantised import quantise, quiet_library
from tasks.learning.models.saving import member_folder, save_in, stored_dtype
from tasks.settings.choices import Pooling
from tasks.settings.params import Lora, Params

logger = logging.getLogger(__name__)

AutoClass = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


# --- Surroundings


def set_up(params: Params) -> torch.device:
    """Fix threads, seeds and algorithms, so that the same inputs give the same bytes; returns the device to use.

    Raises:
        InputError: cuda is asked for and there is none.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.set_num_threads(params.runtime.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = params.runtime.precision == "tf32"
    # Which would also write to all memory that torch takes, before it is written to: nothing here reads it before.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(params.seed)
    torch.manual_seed(params.seed)
    device = device_of(params)
    processes.initialise(device)
    fault = too_many_threads(params.runtime.threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if fault and device.type == "cpu" and processes.is_main():
        logger.warning("%s: fewer may be several times faster (runtime.threads; results differ by rounding)", fault)
    return device


def device_of(params: Params) -> torch.device:
    """The device that runtime.device names; auto is cuda where there is one.

    Raises:
        InputError: cuda is asked for and there is none.
    """
    present = torch.cuda.is_available()
    if params.runtime.device == "cuda" and not present:
        raise InputError("params.yaml: runtime.device is cuda, but torch finds no such device: set it to cpu or auto")
    if not present or params.runtime.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


# --- Loading


def load_policy(folder: Path, params: Params, *, trainable: bool) -> PreTrainedModel:
    """Load a causal language model on the device of the settings, with gradients only where `trainable`.

    Its weights are in fp32, but for what `round_frozen` rounds.

    Raises:
        InputError: the folder holds no causal language model in safetensors, or not all of its weights.
    """
    model = _load(AutoModelForCausalLM, folder, narrow=_is_narrow(params, trainable))
    return _on_device(model, params, trainable)


def load_reward(folder: Path, params: Params, *, trainable: bool = False) -> PreTrainedModel:
    """Load a model with a scalar head, as `load_policy` does: a reward model, or the critic that starts from one.

    Raises:
        InputError: the folder holds no such model in safetensors, not all of its weights, or an unknown pooling.
    """
    model = _load(AutoModelForSequenceClassification, folder, narrow=_is_narrow(params, trainable), num_labels=1)
    if pooling_of(model) not in get_args(Pooling):
        raise InputError(
            f"{folder}: config.json has the score_pooling {pooling_of(model)}, which is not known: train it anew"
        )
    return _on_device(model, params, trainable)


def load_scorer(folder: Path, params: Params) -> nn.Module:
    """Load what scores answers (`completion_scores`): a reward model, or an ensemble of several.

    Raises:
        InputError: as `load_reward`.
    """
    first = load_reward(folder, params)
    count, penalty = getattr(first.config, "score_members", 1), getattr(first.config, "score_penalty", 0.0)
    if count == 1:
        return first
    others = [load_reward(member_folder(folder, number), params) for number in range(2, count + 1)]
    return RewardEnsemble([first, *others], penalty)


class RewardEnsemble(nn.Module):
    """Reward models whose scores are one: their mean, less a penalty times their standard deviation.

    In its folder the first member lies as a model that is alone does, the others below.
    """

    def __init__(self, members: Sequence[nn.Module], penalty: float) -> None:
        """Join models, on one device."""
        super().__init__()
        self.members, self.penalty = nn.ModuleList(members), penalty


def join_members(members: Sequence[nn.Module], penalty: float) -> None:
    """Let the first of several members say in its config that it is not alone."""
    if len(members) > 1:
        config = unwrapped(members[0]).config
        config.score_members, config.score_penalty = len(members), penalty


def new_reward_model(folder: Path, params: Params, pooling: Pooling = "last") -> PreTrainedModel:
    """Put a scalar head on the backbone of a causal model: weights from N(0, 1/(d+1)), d the hidden size, no bias.

    The variance is that of Stiennon et al. 2020 (code of "Learning to summarize from human feedback"). `pooling`, what
    the head reads of an answer, is saved in the model's config.

    Raises:
        InputError: the folder holds no model or not all of its weights, or its family has none with a scalar head.
    """
    narrow = _is_narrow(params, trainable=True)
    model = _load(AutoModelForSequenceClassification, folder, narrow=narrow, new_head=True, num_labels=1)
    head = score_head(model)
    assert isinstance(head, nn.Linear)
    generator = torch.Generator().manual_seed(params.seed)
    deviation = (head.in_features + 1) ** -0.5
    with torch.no_grad():
        head.weight.normal_(std=deviation, generator=generator)
        if head.bias is not None:
            head.bias.zero_()
    model.config.score_pooling = pooling
    return _on_device(model, params, trainable=True)


def context_length(model: nn.Module) -> int | None:
    """Most tokens the model reads, prompt and answer together, or None where the family sets no bound."""
    return usable_context(unwrapped(model).config)


# --- Adapters


def with_adapters(model: PreTrainedModel, lora: Lora) -> nn.Module:
    """Add low-rank adapters, the only weights that then learn (with a scalar head, where there is one).

    Rank 0 gives the model back as it is. Source: Hu et al. 2021, "LoRA".

    Raises:
        InputError: lora.targets names no module of the model.
    """
    if lora.rank == 0:
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    task = TaskType.SEQ_CLS if hasattr(model, "score") else TaskType.CAUSAL_LM
    alpha: Any = lora.alpha  # peft annotates an int and only divides by the rank
    config = LoraConfig(task_type=task, r=lora.rank, lora_alpha=alpha, target_modules=lora.targets)
    quiet_library()
    try:
        with warnings.catch_warnings():
            # GPT-2 stores its weights transposed; peft sets that right by itself and says so.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            # peft asks transformers for gradient checkpointing under its former name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            adapted = get_peft_model(model, config).eval()
    except ValueError as error:
        raise InputError(
            f"params.yaml: lora.targets {lora.targets} does not fit the model ({error}): change it"
        ) from None
    recompute_layers(adapted)
    round_frozen(adapted)
    return adapted


@contextmanager
def reference(model: nn.Module) -> Iterator[nn.Module]:
    """Give the model as it was before its adapters, which are switched off inside the block."""
    if not has_adapters(model):
        raise TypeError("only a model with adapters holds its own reference")
    with model.disable_adapter():
        yield model


# --- The scalar head


def normalise_scores(model: nn.Module, bias: float, gain: float) -> None:
    """Let the model give (score + bias) * gain from now on; both are saved in its config."""
    config = unwrapped(model).config
    config.score_bias, config.score_gain = bias, gain


def pooling_of(model: nn.Module) -> Pooling:
    """What the scalar head reads of an answer; a model that an earlier version saved reads the last token's state."""
    pooling: Pooling = getattr(unwrapped(model).config, "score_pooling", "last")
    return pooling


def score_head(model: nn.Module) -> nn.Module:
    """The linear layer that gives the score (wrapped by peft where it is trained beside adapters).

    Raises:
        InputError: the model's family has none.
    """
    inner = unwrapped(model)
    if not hasattr(inner, "score"):
        raise InputError(f"models of type {inner.config.model_type} have no scalar head: choose another base model")
    head = inner.score
    assert isinstance(head, nn.Module)
    return head


class ValueHead(nn.Linear):
    """The value head of a shared critic: a scalar layer on the policy's last hidden states, 0 everywhere at first.

    So it sends no gradient into the shared backbone before it has learned something itself.
    """

    def __init__(self, policy: nn.Module) -> None:
        """Take the width and the device of a policy."""
        inner = unwrapped(policy)
        super().__init__(inner.config.get_text_config().hidden_size, 1, device=compute_device(inner))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values (N,) of hidden states (N, d), in fp32 whatever the precision."""
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.float())[..., 0]


def _is_narrow(params: Params, trainable: bool) -> bool:
    """Whether linear layers are read in the dtype of their file: they are frozen, and will lie in 16 bits or fewer."""
    is_frozen = not trainable or params.lora.rank > 0
    return is_frozen and (params.runtime.precision == "bf16" or (trainable and params.lora.quantize is not None))


def _load(kind: AutoClass, folder: Path, *, narrow: bool, new_head: bool = False, **options: int) -> PreTrainedModel:
    """Load a model whose every weight comes from the folder, but those of a new scalar head.

    All are read in fp32, or, if `narrow`, those of linear layers in the dtype of their file, so that memory never holds
    these in fp32.
    """
    dtype = stored_dtype(folder) if narrow else torch.float32
    try:
        model, mismatches = load_with_mismatches(kind, folder, dtype=dtype, ignore_mismatched_sizes=True, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder} holds no model that can be used here ({reason}): choose another base model"
        ) from None
    assert isinstance(model, PreTrainedModel)
    if new_head:
        score_head(model)
        mismatches = _but_for_head(mismatches, f"{model.base_model_prefix}.")
    refuse_mismatches(mismatches, str(folder))
    if dtype != torch.float32:
        if any(buffer.is_floating_point() and buffer.dtype != torch.float32 for buffer in model.buffers()):
            return _load(kind, folder, narrow=False, new_head=new_head, **options)  # computed in too few bits
        _widen(model, folder)
    return model


def _widen(model: PreTrainedModel, folder: Path) -> None:
    """Have all weights but those of linear layers in fp32; those of a scalar head have more digits in the file."""
    stay = {id(weight) for layer in untied_layers(model) for weight in layer.parameters()}
    for weight in model.parameters():
        if id(weight) not in stay:
            weight.data = weight.data.float()
    if hasattr(model, SCALAR_HEAD):
        for name, value in read_tensors(folder, f"{SCALAR_HEAD}."):
            model.get_parameter(name).data = value.float()


def _but_for_head(mismatches: Mismatches, backbone: str) -> Mismatches:
    """Leave out the new scalar head, and the head that was in its place."""
    return Mismatches(
        [key for key in mismatches.missing if not key.startswith("score.")],
        [key for key in mismatches.unexpected if key.startswith(backbone)],
        [each for each in mismatches.mismatched if not each[0].startswith("score.")],
    )


def _on_device(model: PreTrainedModel, params: Params, trainable: bool) -> PreTrainedModel:
    device = device_of(params)
    if trainable and params.lora.quantize:
        quantise(model, params.lora.quantize, device)
    elif _is_narrow(params, trainable):
        for layer in untied_layers(model):
            round_layer(layer, DTYPES[params.runtime.precision])
    nn.Module.to(model, device)
    model.train(False).requires_grad_(trainable)
    if trainable:
        save_in(model, params.runtime.output_dtype)
    with exactly(model):  # rounding must not look like a leak
        check_sound(model, context_length(model), f"models of type {model.config.model_type}")
        pack_if_exact(model)
    set_compute_dtype(model, DTYPES[params.runtime.precision])
    round_frozen(model)
    if trainable and params.runtime.weights == "bf16":
        round_trained(model)
    if trainable and params.runtime.gradient_checkpointing:
        _checkpoint_layers(model)
    if trainable and params.runtime.compile:
        compile_layers(model)
    return model


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Have layers compute their activations again for the gradient."""
    if not model.supports_gradient_checkpointing:
        raise InputError(
            f"models of type {model.config.model_type} cannot compute activations again: "
            "set runtime.gradient_checkpointing to false in params.yaml"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    recompute_layers(model)
