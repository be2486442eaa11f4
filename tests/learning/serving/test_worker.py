"""Answers that share a batch with others that come and go are those that `generate` gives each alone."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tasks.learning.models.forward import pack_if_exact
from tasks.learning.sampling.sampler import generate, stop_tokens
from tasks.learning.serving.worker import Asked, Token, Wanted, Worker, noise, nucleus
from tests.tiny import tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [[4], [5, 6, 7, 8, 9, 10, 11], [12, 3], [7, 7, 7], [15, 3], [4, 5, 6, 3], [12, 3]]
LENGTHS = [12, 3, 20, 1, 7, 15, 12]


@pytest.fixture(scope="module", params=["packed", "padded"])
def policy(request: pytest.FixtureRequest) -> nn.Module:
    policy: nn.Module = tiny_policy()
    if request.param == "packed":
        pack_if_exact(policy)  # type: ignore[arg-type]
    return policy


class Answer:
    """Collects what a worker reports; `then` is called with every token."""

    def __init__(self, then: Callable[["Answer"], object] = lambda _: None) -> None:
        self.tokens: list[Token] = []
        self.end: Any = None
        self.has_ended = threading.Event()
        self._then = then

    def report(self, event: Any) -> None:
        if isinstance(event, Token):
            self.tokens.append(event)
            self._then(self)
        else:
            self.end = event
            self.has_ended.set()

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def ask(prompt: Sequence[int], answer: Answer, seed: int = 5, **wanted: Any) -> Asked:
    settings = Wanted(**({"max_new_tokens": 12, "temperature": 1.0} | wanted))
    return Asked(prompt, settings, noise(seed, 1, settings.max_new_tokens)[0], answer.report)


def alone(policy: nn.Module, prompt: Sequence[int], length: int, temperature: float, seed: int) -> list[int]:
    [response] = generate(
        policy,
        TOKENIZER,
        [prompt],
        max_new_tokens=length,
        temperature=temperature,
        seed=seed,
        max_concurrent_sequences=1,
    )
    return response.row.completion


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_answers_are_those_of_each_prompt_alone(policy: nn.Module, temperature: float, at_once: int) -> None:
    worker = Worker(policy, stop_tokens(policy, TOKENIZER), at_once, 1)
    answers = [Answer() for _ in PROMPTS]
    for number, (prompt, length, answer) in enumerate(zip(PROMPTS, LENGTHS, answers, strict=True)):
        worker.submit(ask(prompt, answer, seed=number, max_new_tokens=length, temperature=temperature))
    worker.close()

    expected = [
        alone(policy, prompt, length, temperature, number)
        for number, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True))
    ]
    assert [answer.ids for answer in answers] == expected
    stops = set(stop_tokens(policy, TOKENIZER))
    assert [answer.end for answer in answers] == ["stop" if ids[-1] in stops else "length" for ids in expected]
    assert {"stop", "length"} == {answer.end for answer in answers} or temperature == 0


def test_a_request_joins_while_another_is_answered(policy: nn.Module) -> None:
    worker = Worker(policy, [], 4, 1)
    late = Answer()

    def submit_late(answer: Answer) -> None:
        if len(answer.tokens) == 3:
            worker.submit(ask([5, 6], late, max_new_tokens=2))

    early = Answer(submit_late)
    worker.submit(ask([4], early, max_new_tokens=40))
    assert late.has_ended.wait(30)
    joined_at = len(early.tokens)
    worker.close()

    assert len(early.tokens) == 40
    assert (joined_at < 40) == (worker._batch.__class__.__name__ == "PackedBatch")
    assert late.ids == alone_without_stops(policy, [5, 6], 2)


def alone_without_stops(policy: nn.Module, prompt: Sequence[int], length: int) -> list[int]:
    answer, worker = Answer(), Worker(policy, [], 1, 1)
    worker.submit(ask(prompt, answer, max_new_tokens=length))
    worker.close()
    return answer.ids


def test_an_answer_given_up_makes_room(policy: nn.Module) -> None:
    worker = Worker(policy, [], 1, 1)
    asked: list[Asked] = []

    def give_up(answer: Answer) -> None:
        if len(answer.tokens) == 2:
            worker.cancel(asked[0])

    first, second = Answer(give_up), Answer()
    asked.append(ask([4], first, max_new_tokens=1000))
    worker.submit(asked[0])
    worker.submit(ask([5], second, max_new_tokens=3))
    worker.close()

    assert (len(first.tokens), first.end) == (2, None)
    assert (len(second.tokens), second.end) == (3, "length")


def test_a_step_that_fails_fails_those_under_way_and_no_other(policy: nn.Module, monkeypatch: Any) -> None:
    worker = Worker(policy, [], 2, 1)
    broken = MemoryError("no memory left")

    def step(tokens: Sequence[int]) -> Any:
        raise broken

    monkeypatch.setattr(worker._batch, "step", step)
    first, second = Answer(), Answer()
    worker.submit(ask([4], first))
    assert first.has_ended.wait(30)
    worker.submit(ask([5], second, max_new_tokens=3))
    worker.close()

    assert first.end is broken
    assert (len(second.tokens), second.end) == (3, "length")


def test_log_probabilities_are_the_models_own(policy: nn.Module) -> None:
    worker, answer, plain = Worker(policy, [], 1, 1), Answer(), tiny_policy()
    worker.submit(ask([4, 5], answer, max_new_tokens=1, temperature=0.5, log_probs=2))
    worker.close()

    ids = torch.tensor([[4, 5]])
    with torch.no_grad():
        expected = plain(ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(-1)
    [token] = answer.tokens
    assert token.log_prob == pytest.approx(expected[token.id].item(), abs=1e-5)
    assert [place for place, _ in token.likeliest] == expected.topk(2).indices.tolist()


def test_a_nucleus_is_the_fewest_tokens_that_reach_the_sum() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()

    # .5, then .75, then .9, then 1: three tokens reach .8, two .75, one .3.
    kept = [nucleus(logits, 1.0, p).isfinite()[0].tolist() for p in (0.8, 0.74, 0.3, 1e-9)]
    assert kept == [
        [False, True, True, True],
        [False, True, False, True],
        [False, True, False, False],
        [False, True, False, False],
    ]
    # At temperature 1/2 the probabilities are .01, .25, .0225, .0625 over .345: .725, then .906.
    assert nucleus(logits, 0.5, 0.8).isfinite()[0].tolist() == [False, True, False, True]
