"""An ensemble of reward models: what its members are, its score, its scale, and where it is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks import ppo
from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, read_json
from tasks.data.encoding.encoded import encoded_demonstrations, encoded_preferences
from tasks.data.encoding.tokens import load_tokenizer
from tasks.held_out_reward import held_out_reward
from tasks.learning.batches import collate
from tasks.learning.maths.ensembles import ensemble_scores
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import unwrapped
from tasks.learning.models.loading import RewardEnsemble, load_reward, load_scorer, new_reward_model
from tasks.learning.models.outputs import completion_scores
from tasks.learning.reward_model import head_fit
from tasks.learning.reward_model.calibration import ScoredPair
from tasks.learning.reward_model.ensemble import Member, ensemble_figures, ensemble_pairs, standardise
from tasks.learning.reward_model.head_fit import HeadRows
from tasks.learning.reward_model.loss import PairTerms
from tasks.learning.training.checkpoints import Checkpoints, Progress
from tasks.learning.training.curves import Curve
from tasks.reward import reward
from tasks.settings.params import Params
from tests.conftest import MakeParams, NotedRun, moved_weights
from tests.learning.distributed_run import EnoughError
from tests.test_sft import read_curve

pytestmark = pytest.mark.usefixtures("workspace", "noted_run")
FOLDERS = [MODELS / "reward", *(MODELS / f"reward/member-{number}" for number in (2, 3))]


def heads() -> list[torch.Tensor]:
    return [load_file(folder / "model.safetensors")["score.weight"] for folder in FOLDERS if folder.exists()]


def test_where_members_differ_the_penalty_lowers_the_score() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert ensemble_scores(scores, 0.0).tolist() == [2.0, 2.0]
    assert ensemble_scores(scores, 0.5).tolist() == [1.5, 2.0]
    assert ensemble_scores(scores, 1.0).tolist() == [1.0, 2.0]  # of two the lower one


@pytest.fixture
def two(tiny_model: Path, params: Params) -> list[Member]:
    """Members with origins of their own: raw scores of demonstrated answers around 2 and around 12."""

    def member(chosen: float, rejected: float, demonstrated: list[float]) -> Member:
        scored = [ScoredPair(chosen, rejected, 3, 3)]
        figures, losses = {"steps": 1}, {"before": 0.7, "after": 0.6}
        curve = Curve("reward", 0, NotedRun())
        return Member(new_reward_model(tiny_model, params), curve, figures, losses, scored, demonstrated)

    return [member(3.0, 1.0, [1.0, 3.0]), member(16.0, 13.0, [10.0, 14.0])]


def test_members_are_centred_before_they_are_compared_and_the_ensemble_has_the_scale(two: list[Member]) -> None:
    # Centred: chosen 1 and 4, rejected -1 and 1; so the means are 2.5 and 0, the deviations 1.5 and 1.
    [pair] = ensemble_pairs(two, 0.5)
    assert (pair.chosen_score, pair.rejected_score) == (2.5 - 0.75, 0 - 0.5)
    # Demonstrated: -1 and 1, -2 and 2; means less half the deviation: -1.75 and 1.25, with mean -0.25, deviation 1.5.
    assert standardise(two, 0.5) == {"bias": -1.75, "gain": 1 / 1.5}
    configs = [unwrapped(member.model).config for member in two]
    assert [(each.score_bias, each.score_gain) for each in configs] == [(-1.75, 1 / 1.5), (-11.75, 1 / 1.5)]
    found = ensemble_figures(two, 1 / 1.5, "validation")["ensemble"]
    assert found["disagreement"] == pytest.approx((1.5 + 1.0) / 2 / 1.5)
    assert [each["accuracy"]["value"] for each in found["members"].values()] == [1.0, 1.0]
    assert found["members"]["2"]["validation"]["loss"] == {"before": 0.7, "after": 0.6}


def test_a_model_that_is_alone_is_not_centred(two: list[Member]) -> None:
    assert ensemble_pairs(two[1:], 0.0) == two[1].scored
    assert standardise(two[1:], 0.0) == {"bias": -12.0, "gain": 0.5}
    assert ensemble_figures(two[1:], 0.5, "validation") == {}


@pytest.mark.parametrize("lora", [0, 2])
def test_the_stage_trains_members_and_writes_them_as_one(
    make_params: MakeParams, noted_run: NotedRun, lora: int
) -> None:
    alone = make_params(lora={"rank": lora})
    reward(alone)
    [first] = heads()
    noted_run.rows.clear()
    params = make_params(lora={"rank": lora}, reward={"ensemble": 2, "ensemble_penalty": 0.5})
    reward(params)

    assert heads()[0].equal(first)  # the first has the stage's own seed
    assert [path.name for path in MODELS.glob("reward/member-*")] == ["member-2"]
    assert len(moved_weights(MODELS / "sft", FOLDERS[1])) == len(moved_weights(MODELS / "sft", FOLDERS[0])) > 5
    assert len(moved_weights(FOLDERS[0], FOLDERS[1])) > 5
    metrics, curve = read_json(Path("metrics/reward.json")), read_curve("reward")
    members = metrics["ensemble"]["members"]
    assert [each["steps"] for each in members.values()] == [6, 6]
    assert metrics["steps"] == len(curve) == 12
    assert [float(row["step"]) for row in curve] == [step for step, _ in noted_run.rows] == list(range(1, 13))
    assert metrics["ensemble"]["disagreement"] > 0
    assert not list(Path(".trueline/checkpoints").glob("*"))

    tokenizer, model = load_tokenizer(MODELS / "reward"), load_scorer(MODELS / "reward", params)
    assert isinstance(model, RewardEnsemble)
    rows = collate(list(encoded_demonstrations(VALIDATED, "validation", tokenizer, None)))
    with torch.no_grad():
        scores = completion_scores(model, rows)
        of_members = torch.stack([completion_scores(load_reward(folder, params), rows) for folder in FOLDERS[:2]])
    torch.testing.assert_close(scores, of_members.mean(dim=0) - 0.5 * of_members.std(dim=0, correction=0))
    assert (scores.mean().item(), scores.std(correction=0).item()) == pytest.approx((0.0, 1.0), abs=1e-3)
    pairs = [list(pair) for pair in encoded_preferences(VALIDATED, "test", tokenizer, None)]
    with torch.no_grad():
        margins = [float(torch.diff(completion_scores(model, collate(pair)).flip(0))) for pair in pairs]
    gain = metrics["normalisation"]["gain"]
    assert metrics["margin"]["mean"] == pytest.approx(sum(margins) / len(margins) / gain, rel=1e-3)
    assert metrics["accuracy"]["value"] == sum(margin > 0 for margin in margins) / len(margins)

    models = ppo.load_models(params)
    assert isinstance(models.reward, RewardEnsemble)
    assert models.critic is not None
    assert any(weight.equal(first) for weight in models.critic.state_dict().values())


def test_a_fit_sees_other_pairs_in_each_member(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    features = head_fit.answer_features

    def counted(*given: Any) -> PairValues:
        passes.append(given)
        return features(*given)

    monkeypatch.setattr(head_fit, "answer_features", counted)
    reward(make_params(reward={"head_init": "fit", "head_l2": 0.1, "epochs": 0, "ensemble": 3}))
    one, two, three = heads()
    assert not one.equal(two)
    assert not two.equal(three)
    assert len(passes) == 1  # all members read the same frozen features
    members = read_json(Path("metrics/reward.json"))["ensemble"]["members"].values()
    assert len({each["head_fit"]["loss"] for each in members}) == 3
    assert moved_weights(FOLDERS[0], FOLDERS[1]) == {"score.weight"}


def test_conversations_are_drawn_whole_and_as_many_as_there_are() -> None:
    names = ["a", "b", "b", "c", "c", "c"]
    numbers = torch.arange(6.0)[:, None]
    rows = HeadRows(PairValues(numbers, -numbers), PairTerms(torch.arange(6.0), torch.zeros(6)), names)
    seen = set()
    for seed in range(20):
        drawn = rows.resampled(seed)
        assert drawn.features.chosen[:, 0].tolist() == drawn.terms.weights.tolist()
        assert [names[int(place)] for place in drawn.terms.weights] == drawn.conversations
        counts = [drawn.conversations.count(name) for name in ("a", "b", "c")]
        assert [count % size for count, size in zip(counts, (1, 2, 3), strict=True)] == [0, 0, 0]
        assert sum(count // size for count, size in zip(counts, (1, 2, 3), strict=True)) == 3
        seen.add(tuple(counts))
    assert len(seen) > 3


def test_killed_in_the_second_member_it_goes_on_there_with_the_same_bytes(
    make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(
        lora={"rank": 2}, reward={"ensemble": 2, "head_init": "fit", "head_l2": 0.1}, runtime={"checkpoint_every": 2}
    )
    reward(params)
    files = [*(folder / "model.safetensors" for folder in FOLDERS[:2]), FOLDERS[0] / "config.json"]
    files += [Path("metrics/reward.json"), Path("curves/reward.csv")]
    expected = [file.read_bytes() for file in files]
    save, saved = Checkpoints.save, []

    def save_and_note(self: Checkpoints, progress: Progress, *, final: bool = False) -> None:
        save(self, progress, final=final)
        saved.append((self._folder.name, progress.step))
        if saved[-1] == ("reward-2", 3):
            raise EnoughError

    monkeypatch.setattr(Checkpoints, "save", save_and_note)
    with pytest.raises(EnoughError):
        reward(params)
    assert {path.name for path in Path(".trueline/checkpoints").iterdir()} == {"reward", "reward-2"}
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda self, *given, **named: taken.append(self._folder.name))
        reward(params)
    assert [taken.count(name) for name in ("reward", "reward-2")] == [0, 4]  # of 6 steps each
    assert [file.read_bytes() for file in files] == expected


def test_the_held_out_reward_model_may_be_an_ensemble_too(make_params: MakeParams) -> None:
    held_out_reward(make_params(held_out_reward={"ensemble": 2}))
    assert isinstance(load_scorer(MODELS / "held_out_reward", make_params()), RewardEnsemble)


def test_a_penalty_needs_several_models(make_params: MakeParams) -> None:
    with pytest.raises(InputError, match="ensemble_penalty is on the deviation of several models, but ensemble is 1"):
        make_params(reward={"ensemble_penalty": 0.5})
