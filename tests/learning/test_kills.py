"""kill -9, Ctrl-C and SIGTERM at chosen points of the trainers: run again, they end with an undisturbed run's bytes."""

import os
import signal
import time
from pathlib import Path

import pytest

from tasks.common.files import MODELS
from tasks.data.encoding.tokens import load_tokenizer
from tasks.learning.models.loading import new_reward_model, normalise_scores
from tasks.learning.models.saving import save_model
from tasks.settings.params import Params
from tests.conftest import MakeParams, output_hashes
from tests.learning.interrupted import LOGGED, PRINTED, WAITS, Blow, end_of, linger, start, wait

PPO = {"iterations": 4, "rollouts": 6, "num_minibatches": 2, "max_new_tokens": 8, "critic_warmup": 1, "kl_target": 0.05}
# Six steps, of which every second is saved.
SUPERVISED = [
    (Blow("backward"), []),
    (Blow("moved", 3), [2]),  # the third step is taken and lost
    (Blow("half saved"), [2]),
    (Blow("saved"), [2, 4]),
    (Blow("half published"), [4, 6]),
]
# Four rounds, every one saved. The critic alone takes the first four optimiser steps, then both take eight a round.
ROUNDS = [
    (Blow("sampling"), []),
    (Blow("moved", 7), [1]),  # in the middle of the second round's update
    (Blow("half saved", 2), [1, 2]),
    (Blow("saved"), [1, 2, 3]),
    (Blow("half published"), [3, 4]),
]


@pytest.fixture
def params(workspace: Path, make_params: MakeParams) -> Params:
    """A working folder with a reward model too."""
    found = make_params(ppo=PPO)
    model = new_reward_model(MODELS / "sft", found)
    normalise_scores(model, 0.1, 2.0)
    save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")
    return found


def saved_steps(stage: str) -> list[int]:
    """The steps whose checkpoints there are."""
    return sorted(int(path.name[-8:]) for path in Path(".trueline/checkpoints", stage).glob("step-*"))


def left(stage: str) -> tuple[dict[str, str], str]:
    """What a run has written and logged."""
    return output_hashes(stage), LOGGED.read_text(encoding="utf-8")


def undisturbed(stage: str, params: Params) -> tuple[dict[str, str], str]:
    assert end_of(start(stage, params)) == 0, PRINTED.read_text()
    return left(stage)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "rank", "every", "blows"),
    [("sft", 0, 2, SUPERVISED), ("reward", 0, 2, SUPERVISED), ("dpo", 2, 2, SUPERVISED), ("ppo", 0, 1, ROUNDS)],
    ids=["sft", "reward", "dpo", "ppo"],
)
def test_killed_again_and_again(stage, rank, every, blows, params: Params, make_params: MakeParams):
    params = make_params(ppo=PPO, lora={"rank": rank}, runtime={"checkpoint_every": every})
    expected = undisturbed(stage, params)
    for blow, steps in blows:
        assert end_of(start(stage, params, blow)) == -signal.SIGKILL
        assert saved_steps(stage) == steps
    assert undisturbed(stage, params) == expected
    assert not Path(".trueline/checkpoints", stage).exists()


def struck(stage: str, params: Params, blow: Blow, *signals: signal.Signals, act=wait) -> int | None:
    """Send signals to a process that has come to a point; give its exit code, which comes within seconds."""
    process = start(stage, params, blow, act)
    for number in signals:
        while not WAITS.exists() and process.is_alive():
            time.sleep(0.01)
        assert process.pid is not None, PRINTED.read_text()
        WAITS.unlink()
        os.kill(process.pid, number)
    started = time.monotonic()
    code = end_of(process)
    assert time.monotonic() - started < 15
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "blow", "number", "code"),
    [("sft", Blow("backward", 6), signal.SIGINT, 130), ("ppo", Blow("sampling", 3), signal.SIGTERM, 143)],
    ids=["sft", "ppo"],
)
def test_an_interruption_keeps_the_last_step(stage, blow, number, code, params: Params, make_params: MakeParams):
    params = make_params(ppo=PPO, runtime={"checkpoint_every": 50, "max_tokens_per_micro_batch": 2000})
    expected = undisturbed(stage, params)
    assert struck(stage, params, blow, number) == code
    [step] = saved_steps(stage)
    assert step == blow.call - 1
    file = f".trueline/checkpoints/{stage}/step-{step:08}"
    message = f"{stage}: interrupted; the last good checkpoint, of step {step}, lies in {file}; run again to continue"
    assert PRINTED.read_text().endswith(f"{message}\n")
    assert undisturbed(stage, params) == expected


@pytest.mark.slow
def test_a_step_that_has_begun_to_move_weights_is_finished(params: Params):
    expected = undisturbed("sft", params)
    assert struck("sft", params, Blow("moved", 3), signal.SIGINT, act=linger) == 130
    assert saved_steps("sft") == [2, 3]
    assert undisturbed("sft", params) == expected


@pytest.mark.slow
def test_a_round_whose_update_is_interrupted_is_done_again(params: Params, make_params: MakeParams):
    params = make_params(ppo=PPO, runtime={"checkpoint_every": 1})
    expected = undisturbed("ppo", params)
    assert struck("ppo", params, Blow("moved", 15), signal.SIGTERM) == 143  # in the third round
    assert saved_steps("ppo") == [1, 2]
    assert "the last good checkpoint, of step 2, lies in" in PRINTED.read_text()
    assert undisturbed("ppo", params) == expected
