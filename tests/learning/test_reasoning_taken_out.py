"""Who is given answers without their reasoning: functions in PPO, and all readers of an evaluation's texts."""

from pathlib import Path
from typing import Any

import torch

from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.data.records import Prompt
from tasks.learning.answering.sampled import as_sampled
from tasks.learning.models.loading import load_policy
from tasks.learning.ppo.rewards import function_scores
from tasks.learning.sampling.sampler import Response
from tasks.rewards.answered import Answered
from tasks.settings.params import load_params
from tests.conftest import ROOT

PARAMS = load_params(ROOT / "params.yaml")
REASONING = PARAMS.base.reasoning
PROMPT = Prompt("id", "train", "x", 1, [{"role": "user", "content": "send it"}], ["<think>send</think>order"])


class Recording:
    """A reward that keeps what it was given."""

    name = "recording"

    def __call__(self, answered: Answered) -> list[float]:
        self.given = answered
        return [float(len(ids)) for ids in answered.answer_ids]


def thinking(folder: Path) -> tuple[Any, list[list[int]]]:
    """A tokenizer, and two answers: one with reasoning, one cut within it."""
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    texts = ("<think>send it</think>order", "<think>send it")
    return tokenizer, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_functions_in_ppo_are_given_the_rest_and_all_ids(tiny_model: Path) -> None:
    tokenizer, answers = thinking(tiny_model)
    responses = [Response(Encoded([1], ids), *[torch.zeros(len(ids))] * (len(Response._fields) - 1)) for ids in answers]
    reward = Recording()
    scores = function_scores([reward], [PROMPT], [0, 0], responses, tokenizer, reasoning=REASONING)
    assert [text.strip() for text in reward.given.answers] == ["order", ""]
    assert list(reward.given.answer_ids) == answers
    assert reward.given.references == [["order"], ["order"]]
    assert scores["recording"].tolist() == [len(ids) for ids in answers]
    function_scores([reward], [PROMPT], [0, 0], responses, tokenizer, reasoning=None)
    assert all(text.startswith("<think>") for text in reward.given.answers)
    assert reward.given.references == [PROMPT.references] * 2


def test_texts_of_an_evaluation_are_the_rest_and_the_full_ones_stay(tiny_model: Path) -> None:
    tokenizer, answers = thinking(tiny_model)
    policy = load_policy(tiny_model, PARAMS, trainable=False)
    sampled = as_sampled(policy, tokenizer, [[1], [1]], answers, PARAMS)
    assert sampled.texts == ["order", ""]
    assert all(text.startswith("<think>") for text in sampled.full_texts)
    assert sampled.lengths == [len(ids) for ids in answers]
