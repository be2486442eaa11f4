"""Compiled layers compute what they computed before, under the same names, or are refused with the reason.

The backend is aot_eager, which traces forward and backward passes as inductor does and writes no C++: seconds, not half
a minute.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.dpo import dpo
from tasks.learning.batches import collate
from tasks.learning.models import compiling
from tasks.learning.models.compiling import compile_layers
from tasks.learning.models.loading import load_policy, new_reward_model, normalise_scores, with_adapters
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.models.saving import save_model
from tasks.learning.sampling.sampler import generate
from tasks.ppo import ppo
from tasks.settings.params import Params
from tasks.sft import sft
from tests.conftest import MakeParams, NotedRun
from tests.families import FAMILIES, ROWS, causal

# torch asks every input of what it traces for its gradient, and warns itself that some are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
BATCHES = [ROWS, ROWS[:2], [Encoded([5, 6], [7] * 20 + [2]), *ROWS], ROWS[1:]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_frames() -> int:
    return counters["frames"]["ok"]


def read(policy: Any, rows: list[Encoded]) -> list[Tensor]:
    """Log-probabilities, and the gradients of what learns."""
    log_probs = completion_log_probs(policy, collate(rows))
    log_probs.square().sum().backward()
    found = [log_probs.detach(), *(weight.grad for weight in policy.parameters() if weight.grad is not None)]
    policy.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_rows_of_any_length_are_read_as_before_by_one_program(rank: int, tiny_model: Path, make_params: MakeParams):
    def policy(compiles: bool) -> Any:
        params = make_params(runtime={"compile": compiles}, lora={"rank": rank})
        torch.manual_seed(1)
        return with_adapters(load_policy(tiny_model, params, trainable=True), params.lora)

    before, after = policy(False), policy(True)
    assert [name for name, _ in after.named_parameters()] == [name for name, _ in before.named_parameters()]
    frames = []
    for rows in BATCHES:
        for one, other in zip(read(after, rows), read(before, rows), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        frames.append(compiled_frames())
    assert frames[0] > 0
    assert frames == [frames[0]] * len(BATCHES)


@pytest.mark.slow
def test_sampling_and_saving_do_not_see_it(tiny_model: Path, make_params: MakeParams, tmp_path: Path):
    params, tokenizer = make_params(runtime={"compile": True}), load_tokenizer(tiny_model)
    compiled = load_policy(tiny_model, params, trainable=True)
    plain = load_policy(tiny_model, make_params(), trainable=True)
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 1, "max_concurrent_sequences": 2}
    one, other = (generate(policy, tokenizer, [[4, 5], [6], [7, 8, 9]], **options) for policy in (compiled, plain))
    assert [response.row for response in one] == [response.row for response in other]
    assert compiled_frames() == 0
    read(compiled, ROWS)
    assert compiled_frames() > 0
    save_model(compiled, tokenizer, tmp_path / "compiled")
    save_model(plain, tokenizer, tmp_path / "plain")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("compiled", "plain")]
    assert files[0] == files[1]


PPO = {
    "iterations": 3,
    "rollouts": 6,
    "num_minibatches": 2,
    "max_new_tokens": 8,
    "critic_warmup": 1,
    "learning_rate": 1e-3,
}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(sft, "fp32"), (dpo, "bf16"), (ppo, "fp32")])
@pytest.mark.usefixtures("workspace")
def test_trainers_take_the_same_steps(
    stage: Callable[[Params], None], precision: str, make_params: MakeParams, noted_run: NotedRun
):
    def params(compiles: bool) -> Params:
        return make_params(ppo=PPO, runtime={"compile": compiles, "precision": precision})

    model = new_reward_model(MODELS / "sft", params(False))
    normalise_scores(model, 0.1, 2.0)
    save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")
    stage(params(False))
    expected, noted_run.rows = noted_run.rows, []
    stage(params(True))
    assert compiled_frames() > 0
    for (_, one), (_, other) in zip(noted_run.rows, expected, strict=True):
        assert one.keys() == other.keys()
        for name in (name for name in one if not name.startswith("speed/")):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name


def refused(model: PreTrainedModel) -> str:
    with pytest.raises(InputError) as raised:
        compile_layers(model)
    return str(raised.value)


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = causal(FAMILIES["llama"])
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    assert refused(model).startswith("runtime.compile: torch needs a C++ compiler")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused(model).startswith("runtime.compile: layers whose weights lie in shards are not compiled")
