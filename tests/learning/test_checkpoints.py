"""Checkpoints: exact, atomic, one a stage, never another key's, never a pickle."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.errors import InputError
from tasks.learning.checkpoints import Checkpoints, Progress, content_key
from tasks.learning.optimise import adamw
from tests.conftest import MakeParams

FILE = Path(".trueline/checkpoints/sft/key/last.pt")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Trained:
    """Two small models, of which one has a frozen weight, and their optimisers."""

    def __init__(self, seed: int, key: str = "key", every: int = 2) -> None:
        torch.manual_seed(seed)
        self.models = {"policy": nn.Linear(3, 2), "critic": nn.Linear(3, 1)}
        self.models["critic"].bias.requires_grad_(False)
        self.optimisers = {name: adamw(model) for name, model in self.models.items()}
        self.checkpoints = Checkpoints("sft", key, every, self.models, self.optimisers)

    def step(self) -> None:
        for name, model in self.models.items():
            model(torch.ones(1, 3)).square().sum().backward()
            self.optimisers[name].param_groups[0]["lr"] = 0.1
            self.optimisers[name].step()
            self.optimisers[name].zero_grad()

    def weights(self) -> Sequence[torch.Tensor]:
        return [weight.clone() for model in self.models.values() for weight in model.parameters()]


def test_a_restored_run_goes_on_as_if_nothing_had_happened():
    first = Trained(0)
    first.step()
    first.step()
    first.checkpoints.save(Progress(2, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1 / 3}], {"kl_coefficient": 0.1}))
    again = Trained(1)
    again.models["critic"].bias.data = first.models["critic"].bias.data.clone()  # frozen: comes from the model's folder
    progress = again.checkpoints.restore()
    assert progress == (2, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1 / 3}], {"kl_coefficient": 0.1})
    first.step()
    again.step()
    for ours, theirs in zip(again.weights(), first.weights(), strict=True):
        assert ours.equal(theirs)


def test_only_weights_that_learn_are_kept():
    Trained(0).checkpoints.save(Progress(2))
    state = torch.load(FILE, weights_only=True)  # nothing that would need a pickle
    assert sorted(state["models"]["critic"]) == ["weight"]


def test_nothing_is_found_under_another_key():
    Trained(0).checkpoints.save(Progress(2))
    other = Trained(1, key="other")
    before = other.weights()
    assert other.checkpoints.restore() == Progress(0, (), {})
    for ours, theirs in zip(other.weights(), before, strict=True):
        assert ours.equal(theirs)


def test_saved_at_multiples_and_at_the_end():
    trained = Trained(0)
    trained.checkpoints.save(Progress(1))
    assert not FILE.exists()
    assert trained.checkpoints.kept == "no checkpoint had been saved yet"
    trained.checkpoints.save(Progress(2))
    assert trained.checkpoints.kept == f"the last good checkpoint, of step 2, is kept in {FILE}"
    trained.checkpoints.save(Progress(3), final=True)
    assert Trained(0).checkpoints.restore().step == 3


def test_zero_keeps_none():
    Trained(0, every=0).checkpoints.save(Progress(2), final=True)
    assert not Path(".trueline").exists()


def test_one_checkpoint_a_stage_and_no_leftovers():
    Trained(0, key="older").checkpoints.save(Progress(2))
    (FILE.parent / ".last.pt.killed").mkdir(parents=True)  # what kill -9 leaves in the middle of a save
    Trained(0).checkpoints.save(Progress(2))
    assert [path for path in FILE.parent.parent.rglob("*") if path.is_file()] == [FILE]
    assert list(FILE.parent.iterdir()) == [FILE]


def test_finished_stages_leave_nothing():
    trained = Trained(0)
    trained.checkpoints.save(Progress(2))
    trained.checkpoints.finish()
    assert not FILE.parent.parent.exists()
    trained.checkpoints.finish()  # twice does no harm


def test_an_interrupted_save_keeps_the_last_one(monkeypatch: pytest.MonkeyPatch):
    trained = Trained(0)
    trained.checkpoints.save(Progress(2))
    kept = FILE.read_bytes()

    def killed(_state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained.checkpoints.save(Progress(4))
    assert FILE.read_bytes() == kept


def test_a_damaged_checkpoint_says_the_cure():
    Trained(0).checkpoints.save(Progress(2))
    FILE.write_bytes(FILE.read_bytes()[:100])
    with pytest.raises(InputError, match=r"last.pt is damaged .*: delete it and run again"):
        Trained(0).checkpoints.restore()


def test_the_key_follows_settings_and_bytes(make_params: MakeParams):
    data = Path("data")
    data.mkdir()
    (data / "rows.jsonl").write_text("a")
    key = content_key("sft", make_params(), [data])
    assert content_key("sft", make_params(), [data]) == key
    assert content_key("sft", make_params(gate={"max_kl": 1.0}), [data]) == key  # sft does not read it
    others = [make_params(seed=8), make_params(sft={"epochs": 9}), make_params(lora={"rank": 2})]
    assert key not in [content_key("sft", other, [data]) for other in others]
    (data / "rows.jsonl").write_text("b")
    assert content_key("sft", make_params(), [data]) != key
    assert content_key("sft", make_params(), [data / "rows.jsonl"]) != key
