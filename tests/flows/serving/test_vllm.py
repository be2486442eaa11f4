"""The server before vLLM, of which a stub takes the place: vLLM is not in our lock and cannot be beside it."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.serving.limits import Limits
from flows.serving.loaders import loader_of
from flows.serving.vllm import check_program
from tasks.common.errors import InputError
from tasks.settings.params import Params
from tests.flows.serving.running import Aliases, Running, running, version
from tests.flows.serving.test_following import served, until

STUB = Path(__file__).with_name("vllm_stub.py")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An executable that is the stub, and its working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUB_REQUESTS", str(tmp_path / "requests.jsonl"))
    file = tmp_path / "vllm"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def server(program: str, params: Params, tiny_model: Path, tmp_path: Path) -> Iterator[Running]:
    load = loader_of(params, Limits(), [program, "--max-model-len=64"])
    aliases = Aliases(champion=1)
    with running(params, lambda wanted: load(tiny_model, wanted), aliases, tmp_path / "feedback") as server:
        server.aliases = aliases  # type: ignore[attr-defined]
        yield server


def requests() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("requests.jsonl").read_text().splitlines()]


def processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended; a zombie is one of these
            if str(STUB) in child.cmdline():
                found.append(child)
    return found


def test_answers_come_from_vllm(server: Running, params: Params) -> None:
    answer = server.chat("please", max_tokens=20, temperature=0.5, seed=3, n=2, stop="x", logprobs=True, top_logprobs=1)
    choice = answer.json()["choices"][1]

    tokens = answer.json()["usage"]["prompt_tokens"]
    assert choice["message"] == {
        "role": "assistant",
        "content": f"from trueline-policy/1 with {tokens}",
        "reasoning_content": "hm",
    }
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["content"][0] == {
        "token": "<think>",
        "logprob": -0.5,
        "bytes": list(b"<think>"),
        "top_logprobs": [
            {"token": "<think>", "logprob": -0.5, "bytes": list(b"<think>")},
            {"token": "else", "logprob": -1.5, "bytes": list(b"else")},
        ],
    }
    assert answer.json()["usage"]["completion_tokens"] == 16
    [request] = requests()
    assert request["path"] == "/v1/completions"
    assert len(request["prompt"]) == tokens
    wanted = {"max_tokens": 20, "temperature": 0.5, "seed": 3, "n": 2, "stop": ["x"], "logprobs": 1, "top_p": 1.0}
    assert {name: request[name] for name in wanted} == wanted
    assert request["arguments"][-2:] == ["vllm", "--max-model-len=64"]


def test_a_stream_is_passed_on(server: Running) -> None:
    lines = [line for line in server.chat("please", stream=True).text.split("\n\n") if line]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]

    assert lines[-1] == "data: [DONE]"
    assert "".join(delta.get("content", "") for delta in deltas).startswith("from trueline-policy/1 with ")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"


def test_what_vllm_refuses_is_passed_on(server: Running) -> None:
    refused = server.chat(temperature=10)
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "vLLM: the temperature is too high")
    assert "the model's context is 128" in server.chat("order " * 200).json()["error"]["message"]


def test_the_old_process_ends_when_the_new_one_answers(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    [old] = processes()
    server.aliases.aliases["champion"] = 2  # type: ignore[attr-defined]
    until(lambda: served(server)["champion"] == "trueline-policy/2", 30)

    assert server.chat().json()["model"] == "trueline-policy/2"
    until(lambda: not old.is_running(), 30)
    assert len(processes()) == 1


def test_a_process_that_dies_is_started_again(server: Running) -> None:
    [old] = processes()
    old.kill()
    failed = server.chat()
    assert (failed.status_code, failed.json()["error"]["code"]) in [(502, "engine_unreachable"), (200, None)]
    until(lambda: [each.pid for each in processes()] not in ([], [old.pid]), 30)
    until(lambda: server.chat().status_code == 200, 30)


def test_a_vllm_that_does_not_start(program: str, params: Params, tiny_model: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STUB_FAILS", "1")
    with pytest.raises(InputError, match=r"vLLM did not start: \.trueline/vllm/1\.log says why"):
        loader_of(params, Limits(), [program])(tiny_model, version(1))

    assert "no GPU was found" in Path(".trueline/vllm/1.log").read_text()
    assert processes() == []
    with pytest.raises(InputError, match="the program nowhere/vllm does not exist: install vLLM"):
        check_program("nowhere/vllm")
