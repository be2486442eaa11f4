"""Checkpoints: exact, atomic, the last few of a stage, never of another fingerprint, never a pickle."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import pytest
import torch
from torch import nn

from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.checksums import ChecksumWriter
from tasks.learning.training.interrupts import delayed_interrupts
from tasks.learning.training.optimisation import adamw
from tasks.settings.fingerprint import Fingerprint
from tests.conftest import SMALL, MakeParams

FOLDER = Path(".trueline/checkpoints/sft")
FINGERPRINT = Fingerprint({"sft.learning_rate": 0.004}, {"data/validate": "a"})


def file(step: int) -> Path:
    return FOLDER / f"step-0000000{step}.pt"


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
    first.checkpoints.save(Progress(2, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1 / 3}], {"kl_coefficient": 0.1}))
    again = Trained(make_params, seed=1)
    again.models["critic"].bias.data = first.models["critic"].bias.data.clone()  # frozen: comes from the model's folder
    progress = again.checkpoints.restore()
    assert progress == (2, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1 / 3}], {"kl_coefficient": 0.1})
    first.step()
    again.step()
    for ours, theirs in zip(again.weights(), first.weights(), strict=True):
        assert ours.equal(theirs)


def test_only_weights_that_learn_are_saved(make_params: MakeParams):
    Trained(make_params).save(2)
    state = torch.load(file(2), weights_only=True)  # nothing that would need a pickle
    assert sorted(state["models"]["critic"]) == ["weight"]


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
    assert caplog.messages == [f"{file(4)} is not used: {reason}; training starts from the beginning"]
    # Users who take the change back go on; the first checkpoint of the new training takes the place of the old ones.
    assert Trained(make_params).checkpoints.restore().step == 4
    other.save(2)
    assert sorted(FOLDER.iterdir()) == [file(2)]


def test_an_older_one_that_fits_is_taken_up_beside_a_newer_one_that_does_not(make_params: MakeParams):
    Trained(make_params).save(4)
    newer = file(4).read_bytes()
    Trained(make_params, fingerprint=Fingerprint({}, {})).save(2)
    file(4).write_bytes(newer)  # what a kill leaves between the saving and the dropping of others
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
    assert trained.checkpoints.last_saved == f"the last good checkpoint, of step 2, lies in {file(2)}"
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
    assert sorted(FOLDER.iterdir()) == [file(step) for step in steps]


def test_no_leftovers(make_params: MakeParams):
    (FOLDER / ".step-00000002.pt.killed").mkdir(parents=True)  # what kill -9 leaves in the middle of a save
    (FOLDER / "last.pt").touch()
    Trained(make_params).save(2)
    assert list(FOLDER.iterdir()) == [file(2)]


def test_finished_stages_leave_nothing(make_params: MakeParams):
    trained = Trained(make_params)
    trained.save(2)
    trained.checkpoints.finish()
    assert not FOLDER.exists()
    trained.checkpoints.finish()  # twice does no harm


def test_an_interrupted_save_keeps_the_last_one(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    trained = Trained(make_params)
    trained.save(2)
    saved = file(2).read_bytes()

    def killed(_state, opened):
        opened.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained.save(4)
    assert list(FOLDER.iterdir()) == [file(2)]
    assert file(2).read_bytes() == saved


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_one_with_a_flipped_bit_falls_back_to_the_one_before(
    make_params: MakeParams, caplog: pytest.LogCaptureFixture, share: float
):
    Trained(make_params).save(2, 4)
    whole = bytearray(file(4).read_bytes())
    whole[int(share * len(whole))] ^= 4
    file(4).write_bytes(whole)
    again = Trained(make_params)
    assert again.checkpoints.restore().step == 2
    assert caplog.messages == [f"{file(4)} is damaged (its checksum does not match) and is skipped"]
    assert again.checkpoints.last_saved.endswith(f"of step 2, lies in {file(2)}")
    again.save(4)
    assert Trained(make_params).checkpoints.restore().step == 4


def another_step(whole: bytes, earlier: bytes) -> bytes:
    return earlier


def another_tool(whole: bytes, _earlier: bytes) -> bytes:
    """A whole archive that nobody sealed."""
    return whole[:-64]


@pytest.mark.parametrize(
    "spoil", [lambda whole, _: whole[:100], lambda *_: b"", lambda whole, _: whole + whole, another_step, another_tool]
)
def test_one_that_is_cut_or_another_in_its_place_is_passed_over(make_params: MakeParams, spoil):
    Trained(make_params).save(2, 4)
    file(4).write_bytes(spoil(file(4).read_bytes(), file(2).read_bytes()))
    assert Trained(make_params).checkpoints.restore().step == 2


def test_one_of_an_earlier_release_is_read(make_params: MakeParams):
    Trained(make_params).save(2)
    state = torch.load(file(2), weights_only=True)
    state["origin"] = state.pop("fingerprint")
    with file(2).open("wb") as opened:
        checksummed = ChecksumWriter(opened, f"sft/{file(2).name}")
        torch.save(state, cast("IO[bytes]", checksummed))
        checksummed.end()
    assert Trained(make_params).checkpoints.restore().step == 2


def test_one_of_another_stage_is_passed_over(make_params: MakeParams):
    Trained(make_params).save(2)
    settings = make_params().runtime
    other = Checkpoints("reward", FINGERPRINT, settings, {}, {})
    Path(".trueline/checkpoints/reward").mkdir()
    Path(".trueline/checkpoints/reward", file(2).name).write_bytes(file(2).read_bytes())
    assert other.restore() == Progress(0, (), {})


def test_where_all_are_damaged_training_begins_anew_and_says_so(
    make_params: MakeParams, caplog: pytest.LogCaptureFixture
):
    Trained(make_params).save(2, 4)
    file(2).write_bytes(b"")
    torch.save({"step": 4}, file(4))
    again = Trained(make_params)
    assert again.checkpoints.restore() == Progress(0, (), {})
    assert caplog.messages[-1] == f"all 2 checkpoints in {FOLDER} are damaged; training starts from the beginning"
    again.save(2)
    assert list(FOLDER.iterdir()) == [file(2)]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_saves_the_last_step_and_says_so(make_params: MakeParams, interruption: type[BaseException]):
    trained = Trained(make_params, checkpoint_every=50)
    trained.step()
    trained.save(7)
    with pytest.raises(interruption) as seen, trained.checkpoints:
        trained.models["policy"](torch.ones(1, 3)).sum().backward()  # in the middle of the next step
        raise interruption
    assert seen.value.__notes__ == [f"the last good checkpoint, of step 7, lies in {file(7)}"]
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
    assert seen.value.__notes__ == [f"the last good checkpoint, of step 2, lies in {file(2)}"]
    assert list(FOLDER.iterdir()) == [file(2)]


def test_several_processes_keep_what_they_had_saved_together(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    trained = Trained(make_params)
    trained.save(2, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit), trained.checkpoints:
        raise SystemExit(143)
    assert list(FOLDER.iterdir()) == [file(2)]


def test_an_error_that_is_no_interruption_saves_nothing(make_params: MakeParams):
    trained = Trained(make_params)
    trained.save(1)
    with pytest.raises(ValueError, match="bug") as seen, trained.checkpoints:
        raise ValueError("bug")
    assert not FOLDER.exists()
    assert not hasattr(seen.value, "__notes__")


def test_signals_wait_for_the_end_of_the_block():
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), delayed_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")
        assert done == ["the rest of the block"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
