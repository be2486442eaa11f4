"""What the three supervised trainers promise alike: the same bytes again, and a halt before a NaN."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tasks.common.errors import InputError
from tasks.dpo import dpo
from tasks.learning.training import optimisation, supervised
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.supervised import SupervisedTrainer, TrainingStep
from tasks.reward import reward
from tasks.settings.fingerprint import content_fingerprint
from tasks.settings.params import Params
from tasks.sft import sft
from tests.conftest import MakeParams, NotedRun, output_hashes

STAGES: dict[str, Callable[[Params], None]] = {"sft": sft, "reward": reward, "dpo": dpo}
pytestmark = pytest.mark.usefixtures("workspace")


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


@pytest.fixture(params=list(STAGES))
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process die once a step is done, and saved if it is to be."""
    save = Checkpoints.save

    def dying_save(self: Checkpoints, progress: Progress, *, final: bool = False) -> None:
        save(self, progress, final=final)
        if progress.step == step:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", dying_save)


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes(stage: str, params: Params, noted_run: NotedRun):
    STAGES[stage](params)
    first = output_hashes(stage)
    STAGES[stage](params)
    assert output_hashes(stage) == first


@pytest.mark.slow
def test_another_seed_gives_other_weights(stage: str, make_params: MakeParams, noted_run: NotedRun):
    weights = []
    for seed in (7, 8):
        STAGES[stage](make_params(seed=seed))
        weights.append(output_hashes(stage)[f"models/{stage}/model.safetensors"])
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_not_taken_up(
    stage: str, make_params: MakeParams, noted_run: NotedRun, monkeypatch, caplog
):
    other = make_params(**{stage: {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}})
    STAGES[stage](other)
    undisturbed = output_hashes(stage)
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            STAGES[stage](make_params())
    STAGES[stage](other)
    assert output_hashes(stage) == undisturbed
    checkpoint = f".trueline/checkpoints/{stage}/step-00000004"
    rate = make_params().model_dump()[stage]["learning_rate"]
    differences = f"{stage}.epochs was 2 and is 1; {stage}.learning_rate was {rate} and is 0.005"
    assert caplog.messages == [f"{checkpoint} is not used: {differences}; training starts from the beginning"]


@pytest.mark.slow
def test_a_nan_stops_at_its_step_and_keeps_checkpoint_and_outputs(
    stage: str, params: Params, noted_run: NotedRun, monkeypatch
):
    STAGES[stage](params)
    earlier = output_hashes(stage)
    real = optimisation.update

    def broken(accelerator, model: nn.Module, optimiser, *, step: int, **rest):
        if step == 5:
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            gradients[0].fill_(torch.nan)
        return real(accelerator, model, optimiser, step=step, **rest)

    monkeypatch.setattr(supervised, "update", broken)
    with pytest.raises(
        InputError, match=r"stopped at step 5: the gradient norm is nan; the last good checkpoint, of step 4"
    ):
        STAGES[stage](params)
    *_, last_saved = sorted(Path(".trueline/checkpoints").glob("*/step-*"))
    assert last_saved.name == "step-00000004"
    [saved] = last_saved.glob("*.safetensors")
    assert all(tensor.isfinite().all() for tensor in load_file(saved).values())
    assert output_hashes(stage) == earlier


def test_no_checkpoints_when_they_are_off(stage: str, make_params: MakeParams, noted_run: NotedRun, monkeypatch):
    killed_after(6, monkeypatch)
    with pytest.raises(Killed):
        STAGES[stage](make_params(runtime={"checkpoint_every": 0}))
    assert not Path(".trueline/checkpoints").exists()


def a_step(params: Params) -> TrainingStep:
    """The first step of a trainer of one weight, in two micro-batches."""
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"checkpoint_every": 0})})
    settings = params.sft.model_copy(update={"batch_size": 2})
    fingerprint = content_fingerprint("sft", params, [])
    trainer = SupervisedTrainer(
        "sft", fingerprint, nn.Linear(1, 1), [90, 90], params=params, settings=settings, run=NotedRun()
    )
    step = next(trainer.steps())
    assert len(step.micro_batches) == 2
    return step


def loss_of(step: TrainingStep) -> torch.Tensor:
    model = step._trainer._model
    assert isinstance(model, nn.Linear)
    return model.weight.sum()


def test_a_step_without_all_of_its_micro_batches_is_refused(params: Params):
    step = a_step(params)
    before = loss_of(step).item()
    with pytest.raises(RuntimeError, match="step 1: 1 micro-batches had no backward pass"), step.attempt():
        step.backward(step.micro_batches[0], {"loss": loss_of(step)})
    assert loss_of(step).item() == before
    assert not step.is_taken


def test_a_micro_batch_has_one_backward_pass(params: Params):
    step = a_step(params)
    with pytest.raises(RuntimeError, match="step 1: a micro-batch had two backward passes"), step.attempt():
        for _ in range(2):
            step.backward(step.micro_batches[0], {"loss": loss_of(step)})


def test_a_step_that_is_not_attempted_is_refused_and_not_given_for_ever(params: Params):
    steps = a_step(params)._trainer.steps()
    next(steps)
    with pytest.raises(RuntimeError, match="step 1 was not attempted"):
        next(steps)
