"""Rewards beside references and perturbed answers, before PPO learns from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED
from tasks.common.record import read_record
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Message, Prompt, write_records
from tasks.evaluation.reward_check_record import REWARD_CHECK, RewardCheck
from tasks.learning.models.loading import new_reward_model
from tasks.learning.models.saving import save_model
from tasks.reward_check import PASSED, reward_check
from tasks.rewards.copies import TRAINING
from tasks.rewards.perturbations import PERTURBATIONS
from tasks.rewards.sources import write_copies
from tests.conftest import MakeParams, records_of
from tests.evaluation.evaluations import reward_model

CODE = """
def brief(answers):
    return [-float(len(answer)) for answer in answers]

def faint(answers):
    return [-1e-3 * len(answer) for answer in answers]

def polite(answers):
    return [float("correct" in answer or "refund" in answer or "order" in answer or not answer) for answer in answers]
"""
RIGHT = {"name": "right", "source": "exact_match", "weight": 1.0}
BRIEF = {"name": "brief", "source": "mine/rules.py:brief", "weight": 0.001}
POLITE = {"name": "polite", "source": "mine/rules.py:polite", "weight": 1.0}


@pytest.fixture
def run(workspace: Path, make_params: MakeParams):
    Path("mine").mkdir()
    Path("mine/rules.py").write_text(CODE)
    Path("metrics").mkdir()
    Path("metrics/reward.json").write_text('{"trained": false}')

    def checked(*training: dict[str, Any], combine: str = "sum", **settings: Any) -> RewardCheck:
        params = make_params(
            align={"method": "ppo"},
            ppo={"estimator": "rloo", "responses_per_prompt": 2, "critic_warmup": 0},
            rewards={"code": "mine", "training": list(training), "ground_truth": [], "combine": combine},
            reward_check=settings,
            evaluate={"bootstrap": 200},
        )
        write_copies(TRAINING, params.rewards.training)
        reward_check(params)
        return read_record(REWARD_CHECK, RewardCheck)

    return checked


def test_a_verifier_tells_references_from_every_perturbed_answer(run):
    found = run(RIGHT)
    assert (found.learned_from, found.functions, found.prompts, found.without_references) == (False, ["right"], 4, 0)
    of_right = found.rewards["right"]
    assert (of_right.mean, of_right.full_marks) == (1, 1)
    assert set(of_right.perturbations) == set(PERTURBATIONS)
    for figures in of_right.perturbations.values():
        assert (figures.answers, figures.mean, figures.full_marks, figures.separated) == (4, 0, 0, True)
        assert figures.difference.as_json() == {"value": 1, "low": 1, "high": 1}
    assert found.weighted_sum == of_right


def test_a_reward_that_an_answer_of_nothing_satisfies_is_refused_with_cases(run):
    with pytest.raises(InputError) as refused:
        run(POLITE)
    message = str(refused.value)
    assert message.startswith(
        "PPO would learn to say nothing: by the weighted sum of rewards.training, references of 4 validation prompts "
        "have "
    )
    # Every prompt of the workspace names an order.
    assert "an empty answer has 1.000, the prompt repeated has 1.000" in message
    assert "(prompt validation" in message
    assert message.endswith("repair the rewards (docs/rewards.md), or accept it with reward_check.on_failure: warn")
    assert not REWARD_CHECK.exists()
    assert not PASSED.exists()


def test_it_can_be_accepted_knowingly(run, caplog: pytest.LogCaptureFixture):
    found = run(POLITE, on_failure="warn")
    assert "PPO would learn to say nothing" in caplog.text
    assert not found.rewards["polite"].perturbations["empty"].separated


def test_a_term_of_length_is_no_fault_where_the_sum_is_sound(run):
    found = run(RIGHT, BRIEF)
    brief = found.rewards["brief"].perturbations["empty"]
    assert brief.mean == 0 > found.rewards["brief"].mean
    assert (brief.full_marks, brief.separated) == (1, False)
    assert found.weighted_sum is not None
    assert found.weighted_sum.mean == pytest.approx(1 + 0.001 * found.rewards["brief"].mean)
    with pytest.raises(InputError, match="an empty answer has 0"):
        run({**BRIEF, "weight": 1.0})


def test_normalised_rewards_are_judged_as_they_are_learned_from(run):
    # Raw, the length of an answer is 20 to 50 times as large as the verifier's 1, whatever both are normalised to.
    brief = {**BRIEF, "weight": 0.5}
    with pytest.raises(InputError, match=r"weighted sum of rewards\.training, references"):
        run(RIGHT, brief)
    found = run(RIGHT, brief, combine="normalise_then_sum")
    assert found.weighted_sum is not None
    assert found.weighted_sum.perturbations["empty"].separated
    assert found.rewards["brief"] == run(RIGHT, BRIEF).rewards["brief"]  # by itself each is shown raw
    # And a reward of numbers that are too small to matter in a sum matters.
    faint = {"name": "faint", "source": "mine/rules.py:faint", "weight": 5.0}
    run(RIGHT, faint)
    with pytest.raises(InputError, match=r"rewards\.training, each normalised in its prompt's answers, references"):
        run(RIGHT, faint, combine="normalise_then_sum")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("length_limit", {"longest": 9}, "an empty answer has 1.000, the prompt repeated has 1.000, "),
        (
            "regular_expression",
            {"pattern": "[a-z]"},
            'the prompt repeated has 1.000, "The answer is correct." has 1.000 (',
        ),
        ("exact_match", {"marker": "####"}, "have 0.000 on average, and an empty answer has 0.000"),
    ],
)
def test_a_verifier_that_can_be_gamed_is_refused(run, source: str, options: dict[str, Any], message: str):
    with pytest.raises(InputError) as refused:
        run({"name": "gamed", "source": source, "options": options, "weight": 1.0})
    assert message in str(refused.value)


def test_a_reward_model_is_checked_too(run, make_params: MakeParams, caplog: pytest.LogCaptureFixture):
    params = make_params()
    model = new_reward_model(MODELS / "sft", params)
    save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")
    Path("metrics/reward.json").write_text(json.dumps(reward_model(0.8, 0.7, 0.9)))
    found = run({"name": "reward_model", "source": "model", "weight": 2.0}, on_failure="warn")
    assert found.learned_from
    assert found.weighted_sum is not None
    of_model = found.rewards["reward_model"]
    assert len({each.mean for each in of_model.perturbations.values()}) == len(PERTURBATIONS)
    assert found.weighted_sum.mean == pytest.approx(2 * of_model.mean)


def test_what_cannot_be_checked_is_counted(run, caplog: pytest.LogCaptureFixture):
    prompts = [prompt._replace(references=[]) for prompt in records_of(VALIDATED, "prompts", "validation")]
    write_records(VALIDATED, "prompts", [*prompts[:3]])
    found = run(POLITE)
    assert (found.prompts, found.without_references, found.weighted_sum, found.rewards) == (0, 3, None, {})
    assert "No validation prompt has a reference answer" in caplog.text


def test_fewer_prompts_change_figures_and_not_the_pass(run):
    before, passed = run(RIGHT), PASSED.read_bytes()
    after = run(RIGHT, prompts=2)
    assert (before.prompts, after.prompts) == (4, 2)
    assert PASSED.read_bytes() == passed


def test_perturbed_answers_are_made_from_the_reference():
    def prompt(number: int, question: str, *references: str) -> Prompt:
        return Prompt(
            f"p{number}", "validation", "raw", number, [Message(role="user", content=question)], [*references]
        )

    prompts = [prompt(1, "How?", "by the sea", "so"), prompt(2, "Why?", "so"), prompt(3, "When?", "by the sea")]
    assert {kind: perturb(prompts) for kind, perturb in PERTURBATIONS.items()} == {
        "other_reference": [None, "by the sea", "so"],
        "empty": ["", "", ""],
        "prompt": ["How?", "Why?", "When?"],
        "padding": ["well so and", "well", "well so and"],
        "half": ["by th", "s", "by th"],
        "sentinel": ["The answer is correct."] * 3,
    }
