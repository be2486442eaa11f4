"""What the three supervised trainers promise alike: the same bytes again, after any kill, and a halt before a NaN."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.dpo import dpo
from tasks.errors import InputError
from tasks.learning import fitting, optimise
from tasks.learning.checkpoints import Checkpoints, Progress
from tasks.params import Params
from tasks.reward import reward
from tasks.sft import sft
from tests.conftest import MakeParams, NotedRun, output_hashes

STAGES: dict[str, Callable[[Params], None]] = {"sft": sft, "reward": reward, "dpo": dpo}
pytestmark = pytest.mark.usefixtures("workspace")


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


@pytest.fixture(params=list(STAGES))
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def killed_at(point: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process die at a step: before or after it is saved, or in the middle of writing."""
    save, write = Checkpoints.save, torch.save

    def dying_save(self: Checkpoints, progress: Progress, *, final: bool = False) -> None:
        if progress.step == step and point == "before the save":
            raise Killed
        save(self, progress, final=final)
        if progress.step == step and point == "after the save":
            raise Killed

    def dying_write(state, file):
        if state["step"] == step and point == "within the save":
            file.write(b"half a checkpoint")
            raise Killed
        write(state, file)

    monkeypatch.setattr(Checkpoints, "save", dying_save)
    monkeypatch.setattr(torch, "save", dying_write)


@pytest.mark.parametrize(
    ("point", "step", "rank"),
    [
        ("before the save", 1, 0),
        ("after the save", 2, 2),
        ("after the save", 3, 0),
        ("within the save", 4, 2),
        ("after the save", 6, 0),
    ],
)
def test_killed_and_run_again_gives_the_same_bytes(
    stage: str, point: str, step: int, rank: int, make_params: MakeParams, noted_run: NotedRun, monkeypatch
):
    params = make_params(lora={"rank": rank})
    STAGES[stage](params)
    undisturbed = output_hashes(stage)
    with monkeypatch.context() as patch:
        killed_at(point, step, patch)
        with pytest.raises(Killed):
            STAGES[stage](params)
    STAGES[stage](params)
    assert output_hashes(stage) == undisturbed
    assert not list(Path(".trueline").rglob("*.pt"))


def test_a_second_run_gives_the_same_bytes(stage: str, params: Params, noted_run: NotedRun):
    STAGES[stage](params)
    first = output_hashes(stage)
    STAGES[stage](params)
    assert output_hashes(stage) == first


def test_another_seed_gives_other_weights(stage: str, make_params: MakeParams, noted_run: NotedRun):
    weights = []
    for seed in (7, 8):
        STAGES[stage](make_params(seed=seed))
        weights.append(output_hashes(stage)[f"models/{stage}/model.safetensors"])
    assert weights[0] != weights[1]


def test_a_checkpoint_of_other_settings_is_not_taken_up(
    stage: str, make_params: MakeParams, noted_run: NotedRun, monkeypatch, caplog
):
    other = make_params(**{stage: {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}})
    STAGES[stage](other)
    undisturbed = output_hashes(stage)
    with monkeypatch.context() as patch:
        killed_at("after the save", 4, patch)
        with pytest.raises(Killed):
            STAGES[stage](make_params())
    STAGES[stage](other)
    assert output_hashes(stage) == undisturbed
    [said] = caplog.messages
    assert said.endswith("last.pt is of other settings, data or models, or of other code: begun anew")


def test_a_nan_stops_at_its_step_and_keeps_checkpoint_and_outputs(
    stage: str, params: Params, noted_run: NotedRun, monkeypatch
):
    STAGES[stage](params)
    earlier = output_hashes(stage)
    real = optimise.update

    def broken(accelerator, model: nn.Module, optimiser, *, step: int, **rest):
        if step == 5:
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            gradients[0].fill_(torch.nan)
        return real(accelerator, model, optimiser, step=step, **rest)

    monkeypatch.setattr(fitting, "update", broken)
    with pytest.raises(
        InputError, match=r"stopped at step 5: the gradient norm is nan; the last good checkpoint, of step 4"
    ):
        STAGES[stage](params)
    (kept,) = Path(".trueline/checkpoints").rglob("last.pt")
    state = torch.load(kept, weights_only=True)
    assert state["step"] == 4
    assert all(weight.isfinite().all() for weight in state["models"]["model"].values())
    assert output_hashes(stage) == earlier


def test_no_checkpoints_when_they_are_off(stage: str, make_params: MakeParams, noted_run: NotedRun, monkeypatch):
    killed_at("before the save", 6, monkeypatch)
    with pytest.raises(Killed):
        STAGES[stage](make_params(runtime={"checkpoint_every": 0}))
    assert not Path(".trueline/checkpoints").exists()
