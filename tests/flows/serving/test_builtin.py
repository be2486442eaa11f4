"""The endpoint over our own sampler, asked by OpenAI's client."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from flows.chat import Conversation
from flows.serving.builtin import BuiltinBackend
from tasks.data.encoding.tokens import load_tokenizer
from tasks.learning.models.loading import load_policy, set_up
from tasks.settings.params import Params
from tests.conftest import MakeParams
from tests.flows.serving.running import Aliases, Running, running

ASKED = ["send the order back", "refund it today", "no thanks", "please", "we send it — Grüße 漢字 🎉"]


@pytest.fixture(scope="module")
def params(make_params: MakeParams) -> Params:
    return make_params(evaluate={"temperature": 0.0, "max_new_tokens": 24})


@pytest.fixture(scope="module")
def server(params: Params, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    set_up(params)
    folder = tmp_path_factory.mktemp("feedback")
    load = lambda _: BuiltinBackend(tiny_model, params, 4, None)  # noqa: E731
    with running(params, load, Aliases(champion=7), folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def by_chat(params: Params, tiny_model: Path) -> dict[str, str]:
    """What `trueline chat` answers."""
    model, tokenizer = load_policy(tiny_model, params, trainable=False), load_tokenizer(tiny_model)
    return {text: Conversation(model, tokenizer, params).ask(text) for text in ASKED}


def ask(client: Any, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="champion", messages=[{"role": "user", "content": text}], **options)


def test_greedy_answers_are_those_of_chat(client: Any, by_chat: dict[str, str]) -> None:
    answers = [ask(client, text) for text in ASKED]

    assert [answer.choices[0].message.content for answer in answers] == list(by_chat.values())
    assert len(set(by_chat.values())) > 1
    assert {answer.model for answer in answers} == {"trueline-policy/7"}
    assert answers[0].system_fingerprint == f"fp_{'0' * 12}"
    usage = answers[0].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answers[0].choices[0].finish_reason == ("length" if usage.completion_tokens == 24 else "stop")


def test_requests_at_once_are_answered_as_one_by_one(client: Any, by_chat: dict[str, str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: ask(client, text), ASKED * 4))

    assert [answer.choices[0].message.content for answer in answers] == list(by_chat.values()) * 4


def test_a_seed_answers_as_chat_does(client: Any, params: Params, tiny_model: Path) -> None:
    warm = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"temperature": 1.0})})
    conversation = Conversation(load_policy(tiny_model, warm, trainable=False), load_tokenizer(tiny_model), warm)
    expected = conversation.ask("no thanks")

    answer = ask(client, "no thanks", temperature=1.0, seed=params.seed + 1)
    assert answer.choices[0].message.content == expected
    assert ask(client, "no thanks", temperature=1.0).choices[0].message.content != expected


def test_a_stream_is_the_answer_in_pieces(client: Any, by_chat: dict[str, str]) -> None:
    for text, expected in by_chat.items():
        chunks = list(ask(client, text, stream=True, stream_options={"include_usage": True}))
        *pieces, last = chunks
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
        assert pieces[0].choices[0].delta.role == "assistant"
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
        assert (last.choices, last.usage) == ([], ask(client, text).usage)
        assert {chunk.model for chunk in chunks} == {"trueline-policy/7"}


def test_a_stream_ends_as_the_protocol_says(server: Running) -> None:
    lines = server.chat(ASKED[0], stream=True).text.split("\n\n")

    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-2])


def test_several_answers_each_by_its_own_numbers(client: Any) -> None:
    options = {"n": 3, "temperature": 1.0, "seed": 4, "max_tokens": 12}
    whole = ask(client, "please", **options)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3

    streamed = ["", "", ""]
    for chunk in ask(client, "please", stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_stop_string_ends_the_answer_before_it(client: Any, by_chat: dict[str, str]) -> None:
    expected = by_chat[ASKED[0]]
    stop = expected[len(expected) // 2 :][:3]
    answer = ask(client, ASKED[0], stop=[stop, "never there"])

    assert answer.choices[0].message.content == expected[: expected.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"
    pieces = ask(client, ASKED[0], stop=stop, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert streamed == answer.choices[0].message.content


def test_log_probabilities(client: Any) -> None:
    answer = ask(client, "please", max_tokens=3, logprobs=True, top_logprobs=2)

    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:  # greedy: each is the likeliest
        assert entry.logprob == max(each.logprob for each in entry.top_logprobs)
        assert entry.token == entry.top_logprobs[0].token
        assert len(entry.top_logprobs) == 2


def test_what_does_not_fit_is_refused_with_the_limit(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="the model's context is 128") as raised:
        ask(client, "order " * 200)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="exceed the model's context of 128: lower max_tokens"):
        ask(client, "order", max_tokens=127)


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["trueline-policy", "trueline-policy/7"]
    assert client.models.retrieve("trueline-policy/7").owned_by == "trueline"
    with pytest.raises(openai.NotFoundError, match="does not answer here"):
        client.models.retrieve("gpt-4")
