"""Scoring rollouts: outputs do not depend on padding, and rewards are what the settings say."""

import pytest
import torch

from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import collate
from tasks.learning.models.outputs import completion_log_probs, completion_scores, completion_values
from tasks.learning.ppo.rewards import normalised_sum
from tasks.learning.ppo.scoring import (
    ModelOutputs,
    combined_scores,
    less_penalties,
    model_outputs,
    reward_model_scores,
    score_rollouts,
    token_rewards,
)
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.processes import MicroBatch
from tasks.learning.sampling.sampler import Response
from tasks.settings.params import TrainingReward
from tests.tiny import EOS, PAD, tiny_models, tiny_params


def parse_rewards(weights):
    return [TrainingReward(name=name, source="mine.py:score", options={}, weight=weight) for name, weight in weights]


ROWS = [
    Encoded([4, 3], [5, 6, EOS]),
    Encoded([4, 7, 8, 3], [9]),
    Encoded([10, 3], [11, 12, 13, 14, EOS]),
]


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def scored(models, rows=ROWS, groups=((1, 0), (2,)), penalty=0.0, **ppo):
    return scored_responses(models, responses_of(models, rows), groups, False, tiny_params(**ppo), penalty)


@torch.no_grad()
def responses_of(models, rows):
    log_probs = completion_log_probs(models.policy, collate(rows))
    masks = collate(rows).completion_mask
    return [Response(row, each[mask], None) for row, each, mask in zip(rows, log_probs, masks, strict=True)]


def scored_responses(models, responses, groups, as_sampled, params, penalty=0.0):
    batch = collate([response.row for response in responses])
    return score_rollouts(
        models,
        responses,
        [EOS],
        params.ppo,
        params.rewards,
        scores={"reward_model": reward_model_scores(models.reward, batch, groups)},
        kl_coefficient=0.1,
        missing_eos_penalty=penalty,
        micro_batches=[MicroBatch(list(group)) for group in groups],
        as_sampled=as_sampled,
    )


def shifted(batch, pads):
    """The same rows with more padding on the left."""
    count = len(batch.input_ids)
    ids = torch.cat([torch.full((count, pads), PAD), batch.input_ids], dim=1)
    masks = [torch.cat([torch.zeros(count, pads, dtype=torch.bool), mask], dim=1) for mask in batch[1:3]]
    return batch._replace(input_ids=ids, attention_mask=masks[0], completion_mask=masks[1])


@pytest.mark.parametrize("pads", [1, 5])
def test_padding_on_the_left_changes_nothing(models, pads):
    batch = collate(ROWS)
    with torch.no_grad():
        for reading, model in ((completion_log_probs, models.policy), (completion_values, models.critic)):
            plain, moved = reading(model, batch), reading(model, shifted(batch, pads))
            torch.testing.assert_close(moved[:, pads:], plain, atol=1e-5, rtol=0)
        plain, moved = (completion_scores(models.reward, each) for each in (batch, shifted(batch, pads)))
        torch.testing.assert_close(moved, plain, atol=1e-5, rtol=0)


def test_micro_batches_change_nothing_but_rounding(models):
    for one, other in zip(scored(models, groups=[[0], [1], [2]]), scored(models, groups=[[0, 1, 2]]), strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_what_the_sampler_computed_saves_its_pass_and_changes_nothing_but_rounding(models):
    trainer = PPOTrainer(models, tiny_params())
    responses = trainer.sample([list(row.prompt) for row in ROWS], seed=3)
    passes = []
    hook = models.policy.register_forward_hook(lambda *_: passes.append(1))
    sampled, again = (
        scored_responses(models, responses, [[0, 1, 2]], as_sampled, tiny_params()) for as_sampled in (True, False)
    )
    hook.remove()
    assert len(passes) == 1
    torch.testing.assert_close(sampled.log_probs, again.log_probs, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(sampled.entropies, again.entropies, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(sampled.advantages, again.advantages, atol=1e-4, rtol=1e-4)


def test_policy_equal_to_reference_has_no_kl_and_rewards_sum_to_the_penalised_score(models):
    rollouts = scored(models, penalty=1.0, score_clip=None)
    assert torch.equal(rollouts.log_probs, rollouts.reference_log_probs)
    outputs = model_outputs(models, rollouts.batch, 1.0, [MicroBatch([1, 0]), MicroBatch([2])], None)
    settings = tiny_params(score_clip=None).ppo
    rewards = token_rewards(outputs, rollouts.learned_scores, rollouts.mask, settings, 0.1)
    assert rollouts.has_ended.tolist() == [True, False, True]
    expected = rollouts.scores - torch.tensor([0.0, 1.0, 0.0])  # the second did not end by itself
    torch.testing.assert_close(rewards.sum(dim=1), expected, atol=1e-6, rtol=0)


def test_the_temperature_divides_the_logits_of_policy_and_reference(models):
    rollouts, batch = scored(models, temperature=2.0), collate(ROWS)
    with torch.no_grad():
        logits = models.policy(batch.input_ids[:1, :5]).logits[0, 1:4] / 2.0
    expected = logits.log_softmax(dim=-1)[range(3), [5, 6, EOS]]
    torch.testing.assert_close(rollouts.log_probs[0, 2:5], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollouts.reference_log_probs[0, 2:5], expected, atol=1e-5, rtol=0)


def test_advantages_are_white_over_the_round(models):
    rollouts = scored(models)
    inside = rollouts.advantages[rollouts.mask]
    assert inside.mean().item() == pytest.approx(0, abs=1e-6)
    assert inside.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert rollouts.advantages[~rollouts.mask].abs().max() == 0


def rewards_of(score, has_ended=True, penalty=0.0, **ppo):
    """Two tokens without KL."""
    nothing = torch.zeros(1, 2)
    params = tiny_params(**ppo)
    responses = [Response(Encoded([4], [5, EOS if has_ended else 6]), torch.empty(0), torch.empty(0))]
    scores = {"reward_model": torch.tensor([score])}
    combined = combined_scores(scores, params.ppo, params.rewards)
    learned = less_penalties(combined, responses, [EOS], params.ppo, penalty)
    mask = torch.ones(1, 2, dtype=torch.bool)
    outputs = ModelOutputs(nothing, nothing, nothing, nothing)
    return token_rewards(outputs, learned, mask, params.ppo, 0.1)[0].tolist()


def test_score_is_clipped_before_the_penalty():
    assert rewards_of(30.0, has_ended=False, score_clip=5.0, penalty=1.5) == [0, 3.5]  # 5 - 1.5
    assert rewards_of(-30.0, score_clip=5.0) == [0, -5]
    assert rewards_of(30.0, score_clip=None) == [0, 30]


def test_smoothing_touches_rewards_but_not_the_reported_score(models):
    assert rewards_of(4.0, reward_smoothing=0.25) == [0, 1]
    assert torch.equal(scored(models, reward_smoothing=0.25).scores, scored(models).scores)


def test_whitened_rewards_keep_their_mean_sign():
    # rewards 0 and 4: mean 2, standard deviation 2; divided, not moved
    assert rewards_of(4.0, whiten_rewards=True) == pytest.approx([0, 2], abs=1e-6)


def test_rewards_are_normalised_in_their_group_and_the_sum_over_the_batch():
    rewards = parse_rewards([("big", 1.0), ("small", 2.0)])
    scores = {"big": torch.tensor([0.0, 100.0, 100.0, 100.0]), "small": torch.tensor([0.0, 0.0, 1.0, 0.0])}
    # Group of two: (0, 100) is -+1/sqrt 2 = -+.7071 whatever its size, as is (1, 0): +-.7071; alike is 0.
    # Sums: -.7071, .7071, 2 * .7071, -2 * .7071; mean 0; sample deviation sqrt((.5 + .5 + 2 + 2) / 3) = 1.2910
    expected = [-0.5477, 0.5477, 1.0954, -1.0954]
    assert normalised_sum(rewards, scores, 2).tolist() == pytest.approx(expected, abs=1e-3)
    # their plain sum would tell (0, 100) from (0, 101) by 1 %
    scores["big"] *= 1000
    assert normalised_sum(rewards, scores, 2).tolist() == pytest.approx(expected, abs=1e-3)


def test_grpo_does_not_divide_normalised_rewards_again(models):
    def found(combine):
        params = tiny_params(estimator="grpo", responses_per_prompt=2, kl_estimator="k2")
        params = params.model_copy(update={"rewards": params.rewards.model_copy(update={"combine": combine})})
        responses = responses_of(models, [*ROWS, ROWS[0]])
        return scored_responses(models, responses, [[0, 1, 2, 3]], False, params)

    ours = found("normalise_then_sum")
    learned = ours.learned_scores.view(2, 2)
    expected = (learned - learned.mean(dim=1, keepdim=True)).flatten()
    torch.testing.assert_close(ours.advantages.sum(dim=1) / ours.mask.sum(dim=1), expected)
    assert torch.equal(ours.scores, found("sum").scores)


def test_take_gives_rows_without_columns_of_padding(models):
    rollouts = scored(models)
    part = rollouts.take([1, 0])
    assert part.batch.input_ids.shape == (2, 5)  # 4 + 1 and 2 + 3 tokens; the third row had 7
    assert torch.equal(part.scores, rollouts.scores[[1, 0]])
    assert torch.equal(part.advantages, rollouts.advantages[[1, 0], :5])
