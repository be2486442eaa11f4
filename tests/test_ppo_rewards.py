"""PPO that learns from functions of a file, alone and beside the reward model: columns, sums, groups and penalties."""

import shutil
from pathlib import Path

import pytest
import torch

from tasks import ppo as stage
from tasks.common.errors import InputError
from tasks.common.files import MODELS, read_json
from tasks.learning.ppo import trainer
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.ppo import drawn_prompts, ppo
from tasks.rewards.copies import TRAINING
from tasks.rewards.sources import write_copies
from tests.test_ppo import SETTINGS, curve, kill_and_resume, write_reward_model, written

RULES = """
def brief(answers):
    return [-float(len(answer)) for answer in answers]

def keyed(answers, references):
    return [
        sum(1 if letter in known[0] else -1 for letter in answer) for answer, known in zip(answers, references)
    ]

def ends_with_a_vowel(answers):
    return [float(answer[-1:] in tuple("aeiou")) for answer in answers]

def fails_on_long(answers):
    return [1 / (len(answer) < 1) for answer in answers]
"""


@pytest.fixture
def by_rules(workspace, noted_run, make_params):
    """Settings that learn from functions of a file, copied as the stage reward_functions does."""
    write_reward_model(make_params())
    Path("mine.py").write_text(RULES)

    def settings(*rewards, **ppo):
        params = make_params(
            ppo=SETTINGS | ppo, rewards={"code": "mine.py", "training": list(rewards), "ground_truth": []}
        )
        write_copies(TRAINING, params.rewards.training)
        return params

    return settings


def rule(name, weight=1.0):
    return {"name": name, "source": f"mine.py:{name}", "weight": weight}


LEARNING = {
    "iterations": 10, "rollouts": 24, "critic_warmup": 0, "learning_rate": 1e-2, "kl_coefficient": 0.0,
    "kl_target": None, "missing_eos_penalty": 0.0, "score_clip": None,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("brief", {"estimator": "gae"}),
        ("brief", {"estimator": "gae", "critic": "shared"}),
        ("brief", {"estimator": "grpo", "responses_per_prompt": 4, "kl_estimator": "k3"}),
        ("brief", {"estimator": "reinforce_plus_plus"}),
        ("keyed", {"estimator": "rloo", "responses_per_prompt": 4}),
    ],
    ids=str,
)
def test_a_rule_of_a_users_file_raises_the_policys_score_by_it(by_rules, noted_run, name, options):
    shutil.rmtree(MODELS / "reward")  # nobody needs it
    ppo(by_rules(rule(name), **LEARNING, **options))
    scores = [row[f"reward/{name}"] for row in curve()]
    assert scores == [row["reward"] for row in curve()]
    first, last = scores[:3], scores[-3:]
    assert min(last) > max(first)
    assert {f"reward/{name}", "objective/reward"} <= noted_run.rows[0][1].keys()
    figures = read_json(Path("metrics/ppo.json"))
    assert figures["last"][f"reward/{name}"] == figures["last"]["reward"] > figures["first"]["reward"]
    shown = noted_run.tables["samples"]
    assert [row["score_after"] for row in shown] == [-len(row["after"]) for row in shown] or name != "brief"


@pytest.mark.slow
def test_the_sum_is_weighted_and_clipped_as_one_and_each_reward_is_a_column(by_rules):
    model = {"name": "reward_model", "source": "model", "weight": 0.5}
    ppo(by_rules(rule("brief", -0.25), model, rule("keyed", 2.0)))
    rows = curve()
    assert list(rows[0])[-3:] == ["reward/brief", "reward/reward_model", "reward/keyed"]
    for row in rows:
        brief, of_model, keyed = (row[f"reward/{name}"] for name in ("brief", "reward_model", "keyed"))
        assert row["reward"] == pytest.approx(-0.25 * brief + 0.5 * of_model + 2.0 * keyed, rel=1e-5)
    first = written()
    ppo(by_rules(rule("brief", -0.25), model, rule("keyed", 2.0)))
    assert written() == first


def test_a_function_that_fails_on_what_the_policy_says_names_the_prompt(by_rules):
    with pytest.raises(InputError, match=r"^mine\.py:fails_on_long raised ZeroDivisionError: .* of prompt train\d+ \("):
        ppo(by_rules(rule("fails_on_long")))
    assert not Path("models/ppo").exists()


GROUPED = {"estimator": "grpo", "responses_per_prompt": 2, "kl_estimator": "k3", "critic_warmup": 0, "kl_target": None}
BARE = {"missing_eos_penalty": 0.0}


def test_prompts_whose_answers_earn_the_same_are_counted(by_rules):
    ppo(by_rules(rule("ends_with_a_vowel"), **GROUPED, **BARE))
    shares = [row["uniform_prompts"] for row in curve()]
    assert {round(3 * share, 6) for share in shares} <= {0, 1, 2, 3}  # of three prompts
    assert max(shares) > 0
    assert read_json(Path("metrics/ppo.json"))["first"]["uniform_prompts"] == shares[0]


def test_dynamic_sampling_draws_further_prompts_and_goes_on_where_a_killed_run_ended(by_rules, monkeypatch):
    params = by_rules(rule("ends_with_a_vowel"), **GROUPED, **BARE, dynamic_sampling=2)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"checkpoint_every": 1})})
    learned, learn = [], PPOTrainer.update

    def noted(self, rollouts, iteration, *rest):
        learned.append(rollouts.learned_scores.view(-1, 2))
        return learn(self, rollouts, iteration, *rest)

    drawn: list[int] = []

    def draw(count, start, number, seed):
        drawn.extend(range(start, start + number))
        return drawn_prompts(count, start, number, seed)

    monkeypatch.setattr(stage, "drawn_prompts", draw)
    monkeypatch.setattr(PPOTrainer, "update", noted)
    ppo(params)
    rows, expected = curve(), written()
    assert drawn == list(range(int(sum(row["prompts_sampled"] for row in rows))))  # no prompt is skipped or met twice
    assert all(3 <= row["prompts_sampled"] <= 9 for row in rows)
    assert rows[0]["prompts_sampled"] > 3
    for row, scores in zip(rows, learned, strict=True):
        varied = int((scores[:, 0] != scores[:, 1]).sum())
        assert len(scores) == 3
        # those that vary are all learned from, and stand first
        assert varied == round(row["prompts_sampled"] * (1 - row["uniform_prompts"]))
        assert bool((scores[:varied, 0] != scores[:varied, 1]).all())

    monkeypatch.setattr(PPOTrainer, "update", learn)
    kill_and_resume(params, monkeypatch, iteration=3)
    assert written() == expected


def test_normalised_rewards_are_learned_from_and_reported_raw(by_rules):
    rewards = [rule("brief", 1.0), rule("ends_with_a_vowel", 2.0)]
    params = by_rules(*rewards, **GROUPED, **BARE)
    params = params.model_copy(update={"rewards": params.rewards.model_copy(update={"combine": "normalise_then_sum"})})
    ppo(params)
    for row in curve():
        assert row["reward"] == pytest.approx(row["reward/brief"] + 2 * row["reward/ends_with_a_vowel"], rel=1e-5)


def test_the_penalty_of_a_missing_end_stays_that_of_the_first_answers_after_a_kill_too(by_rules, monkeypatch):
    params = by_rules(rule("brief"), critic_warmup=0, missing_eos_penalty=2.0)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"checkpoint_every": 1})})
    # The model of this folder ends no answer: let half of its vocabulary end one.
    monkeypatch.setattr(trainer, "stop_tokens", lambda *_: range(0, 10**6, 2))
    learned, learn = [], PPOTrainer.update

    def noted(self, rollouts, iteration, *rest):
        learned.append(rollouts)
        return learn(self, rollouts, iteration, *rest)

    monkeypatch.setattr(PPOTrainer, "update", noted)
    ppo(params)
    expected = written()
    [penalty] = {row["missing_eos_penalty"] for row in curve()}
    first = learned[0]
    clipped, ended = first.scores.clamp(-10, 10), first.has_ended.float().mean().item()
    assert 0 < ended < 1  # or the share would not be seen
    assert penalty == pytest.approx(2.0 * ended * clipped.std(correction=0).item())
    for rollouts in learned:
        lost = rollouts.scores.clamp(-10, 10) - rollouts.learned_scores
        torch.testing.assert_close(lost, ~rollouts.has_ended * penalty, atol=1e-5, rtol=0)

    monkeypatch.setattr(PPOTrainer, "update", learn)
    kill_and_resume(params, monkeypatch, iteration=2)
    assert written() == expected
