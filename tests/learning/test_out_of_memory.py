"""A step that runs out of memory is taken in smaller micro-batches, with the same result but for rounding, or stops."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.common.errors import InputError, is_out_of_memory
from tasks.common.files import MODELS
from tasks.dpo import dpo
from tasks.kto import kto
from tasks.learning.batches import Batch
from tasks.learning.models.loading import load_policy
from tasks.learning.ppo import trainer as trainer_module
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.reference_cache import check_first_ratios
from tasks.learning.training.micro_batches import MicroBatchLimit
from tasks.settings.params import Params
from tasks.sft import sft
from tests.conftest import MakeParams, NotedRun
from tests.learning.test_ppo_trainer import PROMPTS, weights
from tests.tiny import Critic, tiny_models, tiny_params

STAGE = sys.modules["tasks.sft"]
CPU_SAYS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"


def too_large_above(tokens: int, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """Have a forward pass fail as torch does on a CPU when a batch holds more tokens."""
    real = getattr(module, name)

    def bounded(model: object, batch: Batch, *rest: object) -> object:
        if batch.attention_mask.sum() > tokens:
            raise RuntimeError(CPU_SAYS)
        return real(model, batch, *rest)

    monkeypatch.setattr(module, name, bounded)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(CPU_SAYS), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_of_memory(error: BaseException, expected: bool):
    assert is_out_of_memory(error) == expected


@pytest.mark.usefixtures("workspace")
def test_training_continues_in_smaller_micro_batches(
    make_params: MakeParams, noted_run: NotedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    params = make_params(runtime={"max_tokens_per_micro_batch": 1000})
    sft(params)
    expected = noted_run.rows
    noted_run.rows = []
    too_large_above(60, monkeypatch, STAGE, "completion_log_probs")
    sft(params)
    for (step, figures), (same_step, same) in zip(noted_run.rows, expected, strict=True):
        assert step == same_step
        assert figures == pytest.approx(same, rel=1e-4)
    assert (
        caplog.messages[0]
        == "out of memory: continuing with 500 tokens in a micro-batch (runtime.max_tokens_per_micro_batch)"
    )
    assert len(caplog.messages) >= 3  # down to 125 or less, and then no more


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [dpo, kto], ids=["dpo", "kto"])
def test_a_first_step_in_smaller_micro_batches_than_the_reference_is_taken(
    stage: Callable[[Params], None],
    precision: str,
    make_params: MakeParams,
    noted_run: NotedRun,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """In bf16 the two then round otherwise: policy and reference are one model still."""
    params = make_params(runtime={"max_tokens_per_micro_batch": 1000, "precision": precision})
    stage(params)
    expected = noted_run.rows
    noted_run.rows = []
    name = "item_logps" if stage is dpo else "batch_logps"
    module = sys.modules[stage.__module__]
    real = getattr(module, name)

    def bounded(model: object, given: object, *rest: Any) -> object:
        rows = given.attention_mask.sum() if isinstance(given, Batch) else 40 * len(rest[0])
        if torch.is_grad_enabled() and rows > 100:
            raise RuntimeError(CPU_SAYS)
        return real(model, given, *rest)

    monkeypatch.setattr(module, name, bounded)
    stage(params)
    assert "out of memory: continuing with 500 tokens" in caplog.text
    for (_, figures), (_, same) in zip(noted_run.rows, expected, strict=True):
        assert figures["loss"] == pytest.approx(same["loss"], rel=1e-4 if precision == "fp32" else 0.02)


def test_a_difference_of_more_than_rounding_is_another_model(workspace: Path, make_params: MakeParams):
    policy = load_policy(MODELS / "sft", make_params(runtime={"precision": "bf16"}), trainable=True)
    logps, lengths = torch.tensor([-20.0, -40.0]), torch.tensor([10, 20])
    check_first_ratios(policy, logps, logps + 0.4, lengths)
    with pytest.raises(AssertionError, match="policy and reference differ"):
        check_first_ratios(policy, logps, logps + 0.6, lengths)


@pytest.mark.usefixtures("workspace", "noted_run")
def test_a_single_row_that_is_too_large_stops_with_the_cure(params, monkeypatch: pytest.MonkeyPatch):
    too_large_above(5, monkeypatch, STAGE, "completion_log_probs")
    with pytest.raises(
        InputError, match=r"out of memory with a single row in a micro-batch: lower validate\.max_tokens"
    ):
        sft(params)


@pytest.mark.parametrize(
    ("critic", "name"),
    [("separate", "completion_log_probs"), ("separate", "critic_values"), ("shared", "critic_values")],
)
def test_ppo_continues_in_smaller_micro_batches(critic: Critic, name: str, monkeypatch: pytest.MonkeyPatch):
    def trained():
        models = tiny_models(critic)
        trainer = PPOTrainer(
            models, tiny_params(runtime={"max_tokens_per_micro_batch": 1000}, num_minibatches=2, critic=critic)
        )
        rollouts = trainer.score(trainer.sample(PROMPTS, seed=1), 0.05)
        return trainer.update(rollouts, 1, "no checkpoint"), weights(models.policy) + weights(models.critic)

    expected_figures, expected = trained()
    too_large_above(14, monkeypatch, trainer_module, name)
    figures, moved = trained()
    assert figures == pytest.approx(expected_figures, abs=1e-4)
    for one, other in zip(moved, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_another_error_is_not_taken_for_it():
    def work(_groups: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        MicroBatchLimit(100).run([0], [10], work)
