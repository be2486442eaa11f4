"""One frozen base for policy, reference, reward models and critic, where memory holds it in less than fp32.

A reward model that was trained as adapters has them beside its merged weights. So PPO makes it again from the policy's
base: modules of its own around the very tensors that the policy has, its adapters, and its head. A critic begins as
that, with further adapters that learn. In fp32 each model stays whole, for its bytes would change.
"""

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from tasks.data.base_model.weights import tensors_of
from tasks.learning import processes
from tasks.learning.models.forward import compute_dtype, set_compute_dtype, unwrapped
from tasks.learning.models.loading import RewardEnsemble, with_adapters
from tasks.learning.models.merging import ADAPTER, SCALING
from tasks.learning.models.precision import SCALAR_HEAD
from tasks.learning.models.quantised import QuantisedLinear
from tasks.learning.models.saving import member_folder
from tasks.settings.params import Lora, Params

if TYPE_CHECKING:
    from peft import LoraConfig

REWARD = "reward"  # the name of a reward model's adapters in its own and in the critic's modules
# Of a weight, between the sum of base and adapters and what was saved: rounding is smaller by half.
LARGEST_DIFFERENCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
logger = logging.getLogger(__name__)


class Adapter(NamedTuple):
    """Low-rank changes of linear layers by name: scaling times B (out, r) A (r, in)."""

    layers: dict[str, tuple[Tensor, Tensor]]  # A, B
    scaling: float

    @property
    def config(self) -> "LoraConfig":
        """What peft makes its layers of."""
        from peft import LoraConfig

        rank = len(next(iter(self.layers.values()))[0])
        alpha: Any = self.scaling * rank  # peft annotates an int and only divides by the rank
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(self.layers))

    def put_into(self, model: nn.Module) -> None:
        """Set the weights of adapters that peft has made, and freeze them."""
        inner = unwrapped(model)
        for name, parts in self.layers.items():
            layer: Any = inner.get_submodule(name)
            for of_all, weight in zip((layer.lora_A, layer.lora_B), parts, strict=True):
                own = of_all[REWARD].weight
                own.data = weight.to(own.device, torch.float32)
                own.requires_grad_(False)


class SharedBase:
    """The base of a policy, from which other models are made."""

    def __init__(self, policy: PreTrainedModel) -> None:
        """Take the modules of a policy that has no adapters yet."""
        self._policy, self._folder = policy, Path(str(policy.name_or_path))
        self._body = _with_same_tensors(policy.base_model)

    def scorer(self, folder: Path) -> nn.Module | None:
        """Make the reward model of a folder, or its ensemble; None where a member must be loaded whole."""
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        count = getattr(config, "score_members", 1)
        folders = [folder, *(member_folder(folder, number) for number in range(2, count + 1))]
        members = [found for each in folders if (found := self._reward_model(each))]
        if len(members) < count:
            return None
        return members[0] if count == 1 else RewardEnsemble(members, config.score_penalty)

    def critic(self, folder: Path | None, lora: Lora) -> nn.Module | None:
        """Make a critic that begins as the reward model of a folder (None: with a head of 0), with adapters that learn.

        None where the reward model must be loaded whole.
        """
        adapter = self._adapter_of(folder) if folder else None
        if folder and not adapter:
            return None
        critic = with_adapters(self._with_head(folder), lora)
        if adapter:
            from peft import PeftModel
            from peft.tuners.tuners_utils import BaseTunerLayer

            assert isinstance(critic, PeftModel)
            (learning,) = critic.active_adapters
            PeftModel.add_adapter(critic, REWARD, adapter.config)  # that of its class would add a second head
            layers: list[Any] = [each for each in critic.modules() if isinstance(each, BaseTunerLayer)]
            for layer in layers:
                layer.set_adapter([name for name in (REWARD, learning) if name in layer.lora_A])
            adapter.put_into(critic)
        return critic

    def _reward_model(self, folder: Path) -> nn.Module | None:
        adapter = self._adapter_of(folder)
        if not adapter:
            return None
        from peft import PeftModel

        model = PeftModel(self._with_head(folder), adapter.config, adapter_name=REWARD).eval()
        adapter.put_into(model)
        return model.requires_grad_(False)

    def _with_head(self, folder: Path | None) -> PreTrainedModel:
        """Give modules of their own around the base, with the scalar head of a folder, or one of 0."""
        config = AutoConfig.from_pretrained(folder or self._folder, local_files_only=True, num_labels=1)
        with torch.device("meta"):
            model: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        setattr(model, model.base_model_prefix, _with_same_tensors(self._body))
        model.config._attn_implementation = self._policy.config._attn_implementation
        head = model.get_submodule(SCALAR_HEAD)
        stored = {name: torch.zeros(weight.shape) for name, weight in head.named_parameters()}
        if folder:
            weights = _Weights(folder)
            stored = {name: weights[f"{SCALAR_HEAD}.{name}"] for name in stored}
        head.load_state_dict({name: weight.to(self._policy.device) for name, weight in stored.items()}, assign=True)
        set_compute_dtype(model, compute_dtype(self._policy))
        found: PreTrainedModel = model.eval()
        return found

    def _adapter_of(self, folder: Path) -> Adapter | None:
        """Read a reward model's adapter if its weights are those of the base and the adapter; else log why not."""
        found = _read_adapter(folder)
        if found and _is_sum(folder, self._folder, found):
            return found
        reason = f"its weights are not those of {self._folder} and its adapter" if found else "it has no adapter"
        logger.warning("%s is loaded whole, beside the policy's base, which takes more memory: %s", folder, reason)
        return None


def shared_base(policy: PreTrainedModel, params: Params) -> SharedBase | None:
    """Give the base of a policy without adapters, if other models may share it; None: each is loaded whole."""
    return SharedBase(policy) if may_share(params) and not processes.uses_fsdp() else None


def may_share(params: Params) -> bool:
    """Whether the settings let models share a base that is not sharded: frozen, and in less than fp32."""
    is_coarse = params.runtime.precision == "bf16" or params.lora.quantize is not None
    return params.lora.rank > 0 and is_coarse and not params.runtime.compile


def _with_same_tensors(model: nn.Module) -> Any:  # noqa: ANN401
    """Copy modules, but not their tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [layer.scales for layer in model.modules() if isinstance(layer, QuantisedLinear)]
    return copy.deepcopy(model, {id(each): each for each in tensors})


def _read_adapter(folder: Path) -> Adapter | None:
    file = folder / ADAPTER
    if not file.exists():
        return None
    with safe_open(file, "pt") as saved:
        names = sorted({name.rpartition(".")[0] for name in saved.keys()})  # noqa: SIM118
        layers = {name: (saved.get_tensor(f"{name}.A"), saved.get_tensor(f"{name}.B")) for name in names}
        return Adapter(layers, float(saved.metadata()[SCALING]))


def _is_sum(folder: Path, base: Path, adapter: Adapter) -> bool:
    """Whether a folder's weights, but for its head, are those of a base and an adapter, up to rounding."""
    weights, before = _Weights(folder), _Weights(base)
    own = {name for name in weights.files if not name.startswith(f"{SCALAR_HEAD}.")}
    changed = {f"{name}.weight": parts for name, parts in adapter.layers.items()}
    if not changed.keys() <= own <= before.files.keys():
        return False
    for name in sorted(own):
        saved, expected = weights[name], before[name].float()
        if name in changed:
            a, b = changed[name]
            expected = expected + adapter.scaling * (b @ a)
        error = (saved.float() - expected).abs().max().item()
        if not error <= LARGEST_DIFFERENCE[saved.dtype] * expected.abs().max().item():
            return False
    return True


class _Weights:
    """The tensors of a folder, read one by one."""

    def __init__(self, folder: Path) -> None:
        """List them."""
        self.files = {each.name: folder / each.file for each in tensors_of(folder, str(folder))}

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor."""
        with safe_open(self.files[name], "pt") as stored:
            tensor: Tensor = stored.get_tensor(name)
        return tensor
