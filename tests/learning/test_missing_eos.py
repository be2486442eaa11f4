"""What an answer without an end costs: its unit, its weight, and what it cannot do."""

import math

import pytest
import torch

from tasks.learning.ppo.missing_eos import SFTAnswers, missing_eos_penalty, observe
from tasks.learning.ppo.trainer import PPOTrainer
from tests.tiny import EOS, tiny_models, tiny_params


def ended(count: int, of: int) -> torch.Tensor:
    return torch.arange(of) < count


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_it_is_in_deviations_of_the_scores_times_the_share_that_ended(scale: float):
    # deviation of 1, 1, 3, 3 about 2: 1; three of four ended
    found = observe(None, scale * torch.tensor([1.0, 1.0, 3.0, 3.0]), ended(3, 4))
    assert found == pytest.approx((0.75, scale))
    assert missing_eos_penalty(2.0, found) == pytest.approx(2 * 0.75 * scale)


@pytest.mark.parametrize(("cut", "expected"), [(0, 1.0), (4, 0.6), (9, 0.1), (10, 0.0)])
def test_it_fades_where_the_limit_cuts_the_sft_models_answers(cut: int, expected: float):
    answers = observe(None, torch.tensor([-1.0, 1.0] * 5), ended(10 - cut, 10))
    assert missing_eos_penalty(1.0, answers) == pytest.approx(expected)


def test_it_never_spreads_the_sft_models_scores_by_more_than_a_third_of_what_they_do():
    spread = [
        missing_eos_penalty(1.0, SFTAnswers(1 - share, 1.0)) * math.sqrt(share * (1 - share))
        for share in torch.linspace(0, 1, 101).tolist()
    ]
    assert max(spread) == pytest.approx(0.3248, abs=1e-4)  # at 1/4: .75 * sqrt(.25 * .75)


def test_what_the_first_answers_say_is_kept():
    first = observe(None, torch.tensor([0.0, 2.0]), ended(2, 2))
    assert observe(first, torch.tensor([0.0, 90.0]), ended(0, 2)) == first == (1.0, 1.0)


def test_where_all_scores_are_alike_the_unit_is_1_until_they_are_not():
    # 0.1 is no sum of powers of two: its deviation in float32 need not be 0 exactly
    alike = observe(None, torch.full((7,), 0.1), ended(7, 7))
    assert alike == (1.0, 0.0)
    assert missing_eos_penalty(0.5, alike) == 0.5
    assert observe(alike, torch.tensor([0.0, 10.0]), ended(0, 2)) == (1.0, 5.0)


def test_normalised_rewards_have_a_unit_of_1_and_clipped_ones_that_of_what_is_learned_from():
    models = tiny_models()
    params = tiny_params(estimator="rloo", responses_per_prompt=2, score_clip=None)
    params = params.model_copy(update={"rewards": params.rewards.model_copy(update={"combine": "normalise_then_sum"})})
    scores = {"reward_model": torch.tensor([0.0, 100.0, 7.0, 9.0, 3.0, 1.0])}
    trainer = PPOTrainer(models._replace(critic=None), params)
    responses = trainer.sample([[4, 3]] * 6, seed=1)
    # 1 by the sample's deviation (n - 1)
    assert trainer.observe(None, responses, scores).score_deviation == pytest.approx(math.sqrt(5 / 6), abs=1e-3)
    clipped = PPOTrainer(tiny_models(), tiny_params(score_clip=2.0))
    scores = {"reward_model": torch.tensor([-90.0, 90.0, -90.0, 90.0, -90.0, 90.0])}
    assert clipped.observe(None, responses, scores).score_deviation == pytest.approx(2.0)


@pytest.mark.parametrize(("of_cut", "warnings"), [(-3.0, 1), (0.0, 0)])
def test_a_reward_that_mainly_punishes_cut_answers_is_warned_of_once(caplog, of_cut: float, warnings: int):
    trainer = PPOTrainer(tiny_models(), tiny_params(score_clip=None))
    [sampled] = trainer.sample([[4, 3]], seed=1)
    cut, ended = (sampled._replace(row=sampled.row._replace(completion=[4, last])) for last in (5, EOS))
    # ended: eight times -1, 1; cut: four times one less and one more than `of_cut`
    scores = {"reward_model": torch.tensor([-1.0, 1.0] * 8 + [of_cut - 1, of_cut + 1] * 4)}
    known = trainer.observe(None, [ended] * 16 + [cut] * 8, scores)
    trainer.observe(known, [ended] * 16 + [cut] * 8, scores)
    assert known.share_ended == pytest.approx(2 / 3)
    found = [record.message for record in caplog.records]
    assert [each.startswith("The training reward mainly punishes") for each in found] == [True] * warnings
