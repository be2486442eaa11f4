"""Evaluation points along a training: where they lie, what is saved there, and that a stop changes nothing."""

import pytest
import torch

from tasks.data.answers import Answer
from tasks.data.encoding.tokens import Encoded, encode_prompt
from tasks.data.records import Message, Prompt
from tasks.learning.batches import collate
from tasks.learning.evaluation_points import EvaluationPoints, evaluation_steps
from tasks.learning.models.outputs import completion_log_probs
from tests.tiny import EOS, WORDS, tiny_params, tiny_policy, tiny_tokenizer

PARAMS = tiny_params(evaluation_points=2, temperature=0.7)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            f"{number:03}",
            "validation",
            "rows.jsonl",
            number,
            [Message(role="user", content=WORDS[4 + number % 9])],
            [],
        )
        for number in reversed(range(count))
    ]


def points(policy: torch.nn.Module, count: int = 5) -> EvaluationPoints:
    return EvaluationPoints(
        policy, tiny_tokenizer(), prompts(count), PARAMS.ppo, PARAMS, temperature=PARAMS.ppo.temperature
    )


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(50, 5, {0, 10, 20, 30, 40, 50}), (3, 8, {0, 1, 2, 3}), (7, 2, {0, 4, 7}), (9, 1, {0, 9}), (9, 0, set())],
)
def test_evaluation_points_lie_evenly_from_beginning_to_end(steps: int, count: int, expected: set[int]):
    assert evaluation_steps(steps, count) == expected


def test_answers_are_saved_with_their_log_probabilities():
    policy = tiny_policy()
    found = points(policy)
    for step in range(7):
        found.at_step(step, 6)
        found.at_step(step, 6)  # a step that ran out of memory comes again
    assert [(answer.step, answer.id) for answer in found.answers] == [
        (step, f"{number:03}") for step in (0, 3, 6) for number in range(5)
    ]
    assert all(answer.tokens[-1] == EOS or len(answer.tokens) == PARAMS.ppo.max_new_tokens for answer in found.answers)
    # The policy stood still, and the random numbers are the same at every evaluation point.
    assert [answer._replace(step=0) for answer in found.answers[5:10]] == found.answers[:5]
    rows = [response_of(answer) for answer in found.answers[:5]]
    with torch.no_grad():
        logps = completion_log_probs(policy, collate(rows, torch.device("cpu")), temperature=0.7).sum(dim=1)
    assert [answer.logp for answer in found.answers[:5]] == pytest.approx(logps.tolist(), abs=1e-5)


def response_of(answer: Answer) -> Encoded:
    [prompt] = [prompt for prompt in prompts(5) if prompt.id == answer.id]
    return Encoded(encode_prompt(tiny_tokenizer(), prompt.prompt), answer.tokens)


def test_a_checkpoint_brings_answers_back_that_its_policy_could_not_give_again():
    first = points(tiny_policy(seed=0))
    first.at_step(0, 6)
    again = points(tiny_policy(seed=3))
    again.restore(first.state, {})
    again.at_step(0, 6)
    assert again.answers == first.answers
    again.at_step(3, 6)
    assert [answer.tokens for answer in again.answers[5:]] != [answer.tokens for answer in first.answers]
    fresh = points(tiny_policy())
    fresh.restore({}, {})
    assert fresh.answers == []


@pytest.mark.parametrize(("most", "answered"), [(3, 3), (9, 5), (None, 5)])
def test_no_more_prompts_than_the_settings_say_the_first_by_id(most: int | None, answered: int):
    settings = PARAMS.ppo.model_copy(update={"evaluation_prompts": most})
    found = EvaluationPoints(tiny_policy(), tiny_tokenizer(), prompts(5), settings, PARAMS, temperature=1.0)
    found.at_step(0, 6)
    assert [answer.id for answer in found.answers] == [f"{number:03}" for number in range(answered)]
