"""Checkpoints: exact, atomic, the last few of a stage, never of another fingerprint, never a pickle."""

import errno
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.interrupts import delayed_interrupts
from tasks.learning.training.optimisation import adamw
from tasks.settings.fingerprint import Fingerprint
from tests.conftest import SMALL, MakeParams

FOLDER = Path(".trueline/checkpoints/sft")
FINGERPRINT = Fingerprint({"sft.learning_rate": 0.004}, {"data/validate": "a"})


def folder(step: int) -> Path:
    return FOLDER / f"step-0000000{step}"


def contents(step: int) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder(step).iterdir()}


def put(step: int, files: Mapping[str, bytes]) -> None:
    """Make a checkpoint of some files."""
    shutil.rmtree(folder(step), ignore_errors=True)
    folder(step).mkdir(parents=True)
    for name, content in files.items():
        (folder(step) / name).write_bytes(content)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Trained:
    """Two small models, of which one has a frozen weight, and their optimisers."""

    def __init__(
        self, make_params: MakeParams, seed: int = 0, fingerprint: Fingerprint = FINGERPRINT, **runtime: int
    ) -> None:
        torch.manual_seed(seed)
        self.models = {"policy": nn.Linear(3, 2), "critic": nn.Linear(3, 1)}
        self.models["critic"].bias.requires_grad_(False)
        self.optimisers = {name: adamw(model) for name, model in self.models.items()}
        settings = make_params(runtime={**SMALL["runtime"], **runtime}).runtime
        self.checkpoints = Checkpoints("sft", fingerprint, settings, self.models, self.optimisers)

    def step(self) -> None:
        for name, model in self.models.items():
            model(torch.ones(1, 3)).square().sum().backward()
            self.optimisers[name].param_groups[0]["lr"] = 0.1
            self.optimisers[name].step()
            self.optimisers[name].zero_grad()

    def weights(self) -> Sequence[torch.Tensor]:
        return [weight.clone() for model in self.models.values() for weight in model.parameters()]

    def save(self, *steps: int) -> None:
        for step in steps:
            self.checkpoints.save(Progress(step))


def test_a_restored_run_goes_on_as_if_nothing_had_happened(make_params: MakeParams):
    first = Trained(make_params)
    first.step()
    first.step()
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1 / 3}]
    first.checkpoints.save(Progress(2, rows, {"kl_coefficient": 0.1}))
    again = Trained(make_params, seed=1)
    again.models["critic"].bias.data = first.models["critic"].bias.data.clone()  # frozen: comes from the model's folder
    progress = again.checkpoints.restore()
    assert progress == Progress(2, rows, {"kl_coefficient": 0.1})
    first.step()
    again.step()
    for ours, theirs in zip(again.weights(), first.weights(), strict=True):
        assert ours.equal(theirs)


def test_the_weights_of_another_step_come_back_beside_those_of_the_last(make_params: MakeParams):
    first = Trained(make_params)
    best = {"critic": {"weight": first.models["critic"].weight.detach().clone()}}
    first.step()
    first.checkpoints.save(Progress(2, copies=best))
    again = Trained(make_params, seed=1)
    found = again.checkpoints.restore().copies
    assert {name: set(of_one) for name, of_one in found.items()} == {"critic": {"weight"}}
    assert found["critic"]["weight"].equal(best["critic"]["weight"])
    assert again.models["critic"].weight.equal(first.models["critic"].weight)


def test_only_weights_that_learn_are_saved(make_params: MakeParams):
    Trained(make_params).save(2)
    with safe_open(next(folder(2).glob("*.safetensors")), "pt") as saved:  # nothing that would need a pickle
        assert sorted(saved.keys()) == ["critic.weight.weight", "policy.weight.bias", "policy.weight.weight"]


def test_one_of_another_fingerprint_is_refused_with_the_reason(
    make_params: MakeParams, caplog: pytest.LogCaptureFixture
):
    Trained(make_params).save(2, 4)
    other = Trained(make_params, seed=1, fingerprint=Fingerprint({"sft.learning_rate": 0.002}, {"data/validate": "b"}))
    before = other.weights()
    assert other.checkpoints.restore() == Progress(0, (), {})
    for ours, theirs in zip(other.weights(), before, strict=True):
        assert ours.equal(theirs)
    reason = "sft.learning_rate was 0.004 and is 0.002; data/validate has changed"
    assert caplog.messages == [f"{folder(4)} is not used: {reason}; training starts from the beginning"]
    # Users who take the change back go on; the first checkpoint of the new training takes the place of the old ones.
    assert Trained(make_params).checkpoints.restore().step == 4
    other.save(2)
    assert sorted(FOLDER.iterdir()) == [folder(2)]


def test_an_older_one_that_fits_is_taken_up_beside_a_newer_one_that_does_not(make_params: MakeParams):
    Trained(make_params).save(4)
    newer = contents(4)
    Trained(make_params, fingerprint=Fingerprint({}, {})).save(2)
    put(4, newer)  # what a kill leaves between the saving and the dropping of others
    again = Trained(make_params, fingerprint=Fingerprint({}, {}))
    assert again.checkpoints.restore().step == 2
    again.save(4)
    assert Trained(make_params, fingerprint=Fingerprint({}, {})).checkpoints.restore().step == 4


def test_saved_at_multiples_and_at_the_end(make_params: MakeParams):
    trained = Trained(make_params)
    trained.save(1)
    assert not FOLDER.exists()
    assert trained.checkpoints.last_saved == "no checkpoint had been saved yet"
    trained.save(2)
    assert trained.checkpoints.last_saved == f"the last good checkpoint, of step 2, lies in {folder(2)}"
    trained.checkpoints.save(Progress(3), final=True)
    assert Trained(make_params).checkpoints.restore().step == 3


def test_zero_keeps_none(make_params: MakeParams):
    trained = Trained(make_params, checkpoint_every=0)
    trained.checkpoints.save(Progress(2), final=True)
    with pytest.raises(KeyboardInterrupt), trained.checkpoints:
        raise KeyboardInterrupt
    assert not Path(".trueline").exists()


@pytest.mark.parametrize(("max_checkpoints", "steps"), [(1, [8]), (2, [6, 8]), (3, [4, 6, 8])])
def test_the_last_few_stay_also_over_a_restart(make_params: MakeParams, max_checkpoints: int, steps: list[int]):
    Trained(make_params, max_checkpoints=max_checkpoints).save(2, 4, 6)
    again = Trained(make_params, max_checkpoints=max_checkpoints)
    assert again.checkpoints.restore().step == 6
    again.save(8)
    assert sorted(FOLDER.iterdir()) == [folder(step) for step in steps]


def test_no_leftovers(make_params: MakeParams):
    (FOLDER / ".step-00000002.killed").mkdir(parents=True)  # what kill -9 leaves in the middle of a save
    (FOLDER / "step-00000001.pt").touch()  # of an earlier version
    Trained(make_params).save(2)
    assert list(FOLDER.iterdir()) == [folder(2)]


def test_finished_stages_leave_nothing(make_params: MakeParams):
    trained = Trained(make_params)
    trained.save(2)
    trained.checkpoints.finish()
    assert not FOLDER.exists()
    trained.checkpoints.finish()  # twice does no harm


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_save_keeps_the_last_one(
    make_params: MakeParams, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
):
    trained = Trained(make_params)
    trained.save(2)
    saved = contents(2)

    def killed(*_arguments: object) -> None:
        raise interruption

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", killed)
    with pytest.raises(interruption):
        trained.save(4)
    assert list(FOLDER.iterdir()) == [folder(2)]
    assert contents(2) == saved


def test_a_full_disk_is_told_by_its_name(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
    with pytest.raises(OSError, match=f"No space left on device: '{folder(2)}'"):
        Trained(make_params).save(2)
    assert list(FOLDER.iterdir()) == []


NAMES = ("shard-00001-model-00001-of-00001.safetensors", "progress.pt", "checksums.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_one_with_a_flipped_bit_falls_back_to_the_one_before(
    make_params: MakeParams, caplog: pytest.LogCaptureFixture, name: str, share: float
):
    Trained(make_params).save(2, 4)
    assert sorted(contents(4)) == sorted(NAMES)
    damaged = bytearray(contents(4)[name])
    damaged[int(share * len(damaged))] ^= 4
    (folder(4) / name).write_bytes(damaged)
    again = Trained(make_params)
    assert again.checkpoints.restore().step == 2
    assert caplog.messages == [f"{folder(4)} is damaged (its checksums do not match) and is skipped"]
    assert again.checkpoints.last_saved.endswith(f"of step 2, lies in {folder(2)}")
    again.save(4)
    assert Trained(make_params).checkpoints.restore().step == 4


def another_step(_own: Mapping[str, bytes], earlier: Mapping[str, bytes]) -> Mapping[str, bytes]:
    return earlier


def without(name: str) -> Callable[..., Mapping[str, bytes]]:
    return lambda own, _: {each: content for each, content in own.items() if each != name}


def more(own: Mapping[str, bytes], _: object) -> Mapping[str, bytes]:
    return {**own, "shard-00002-model-00001-of-00001.safetensors": own[NAMES[0]]}


def cut(own: Mapping[str, bytes], _: object) -> Mapping[str, bytes]:
    return {**own, NAMES[0]: own[NAMES[0]][:-1]}


@pytest.mark.parametrize("spoil", [another_step, *map(without, NAMES), more, cut])
def test_one_that_is_cut_or_another_in_its_place_is_passed_over(make_params: MakeParams, spoil):
    Trained(make_params).save(2, 4)
    put(4, spoil(contents(4), contents(2)))
    assert Trained(make_params).checkpoints.restore().step == 2


def test_one_of_an_earlier_version_is_passed_over_with_a_word(
    make_params: MakeParams, caplog: pytest.LogCaptureFixture
):
    FOLDER.mkdir(parents=True)
    (FOLDER / "step-00000009.pt").touch()
    trained = Trained(make_params)
    assert trained.checkpoints.restore() == Progress()
    [message] = caplog.messages
    assert message.endswith(
        ".pt is not used: an earlier version of Trueline saved it; training starts from the beginning"
    )
    trained.save(2)
    assert Trained(make_params).checkpoints.restore().step == 2


def test_one_of_another_stage_is_passed_over(make_params: MakeParams):
    Trained(make_params).save(2)
    settings = make_params().runtime
    other = Checkpoints("reward", FINGERPRINT, settings, {}, {})
    shutil.copytree(FOLDER, ".trueline/checkpoints/reward")
    assert other.restore() == Progress(0, (), {})


def test_where_all_are_damaged_training_begins_anew_and_says_so(
    make_params: MakeParams, caplog: pytest.LogCaptureFixture
):
    Trained(make_params).save(2, 4)
    put(2, {})
    put(4, without("checksums.json")(contents(4), {}))
    again = Trained(make_params)
    assert again.checkpoints.restore() == Progress(0, (), {})
    assert caplog.messages[-1] == f"all 2 checkpoints in {FOLDER} are damaged; training starts from the beginning"
    again.save(2)
    assert list(FOLDER.iterdir()) == [folder(2)]


def test_large_tensors_have_files_of_their_own(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.learning.training.sharded_state.BYTES_OF_FILE", 20)
    trained = Trained(make_params)
    trained.step()
    trained.save(2)
    # Weight, step and moments of the policy: 24 | 4 | 24 | 24, its bias: 8 + 4 + 8 | 8, the critic: + 12 | 4 + 12 | 12.
    assert len(list(folder(2).glob("*.safetensors"))) == 8
    again = Trained(make_params, seed=1)
    again.checkpoints.restore()
    assert all(weight.equal(other) for weight, other in zip(again.weights()[:3], trained.weights()[:3], strict=True))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_saves_the_last_step_and_says_so(make_params: MakeParams, interruption: type[BaseException]):
    trained = Trained(make_params, checkpoint_every=50)
    trained.step()
    trained.save(7)
    with pytest.raises(interruption) as seen, trained.checkpoints:
        trained.models["policy"](torch.ones(1, 3)).sum().backward()  # in the middle of the next step
        raise interruption
    assert seen.value.__notes__ == [f"the last good checkpoint, of step 7, lies in {folder(7)}"]
    again = Trained(make_params, seed=1)
    assert again.checkpoints.restore().step == 7
    for ours, theirs in zip(again.weights()[:2], trained.weights()[:2], strict=True):
        assert ours.equal(theirs)


def test_weights_that_have_moved_since_the_last_step_are_not_saved(make_params: MakeParams):
    trained = Trained(make_params)
    trained.save(2, 3)
    trained.step()
    with pytest.raises(KeyboardInterrupt) as seen, trained.checkpoints:
        raise KeyboardInterrupt
    assert seen.value.__notes__ == [f"the last good checkpoint, of step 2, lies in {folder(2)}"]
    assert list(FOLDER.iterdir()) == [folder(2)]


def test_several_processes_keep_what_they_had_saved_together(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    trained = Trained(make_params)
    trained.save(2, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit), trained.checkpoints:
        raise SystemExit(143)
    assert list(FOLDER.iterdir()) == [folder(2)]


def test_an_error_that_is_no_interruption_saves_nothing(make_params: MakeParams):
    trained = Trained(make_params)
    trained.save(1)
    with pytest.raises(ValueError, match="bug") as seen, trained.checkpoints:
        raise ValueError("bug")
    assert not FOLDER.exists()
    assert not hasattr(seen.value, "__notes__")


def test_signals_wait_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), delayed_interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
    assert done == ["the rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
