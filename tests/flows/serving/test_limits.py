"""Who is let in, and how much is taken: every refusal is one sentence in the shape of OpenAI's errors."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.serving.errors import RequestError
from flows.serving.limits import Limits, Rate, check_host, read_keys
from tasks.common.errors import InputError
from tests.flows.serving.conftest import Parrots, Serve
from tests.flows.serving.running import Running
from tests.flows.serving.test_following import until

KEY = "a-key-of-sixteen-characters"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


def refused(response: Any) -> tuple[int, str]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: list should have at least 1 item after validation, not 0"),
        ({"messages": "hello"}, "messages: input should be a valid list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role is none of system, developer, user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content is neither a text"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": 5000}, "max_tokens is 5000, and the limit here is 2048: lower it"),
        ({"temperature": -1}, "temperature: input should be greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature: input should be a valid number"),
        ({"n": 17}, "n: input should be less than or equal to 16"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: set logprobs to true"),
        ({"tools": [{"type": "function"}]}, "tools is not supported by this server: leave it out"),
        ({"response_format": {"type": "json_schema"}}, "response_format is not supported by this server"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported by this server"),
    ],
)
def test_what_cannot_be_answered_as_it_is_meant(serve: Serve, fields: dict[str, Any], message: str) -> None:
    status, found = refused(serve().chat(**fields))

    assert status == 400
    assert found.startswith(message)


def test_what_does_nothing_is_ignored(serve: Serve, parrots: Parrots) -> None:
    harmless: dict[str, Any] = {
        "tools": [],
        "response_format": {"type": "text"},
        "frequency_penalty": 0,
        "store": True,
        "new": [1],
    }
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "ann"}]

    assert serve().chat(messages=messages, **harmless).status_code == 200
    [question] = parrots.loaded["trueline-policy/1"].questions
    assert question.messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one\ntwo"}]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object(serve: Serve, body: bytes) -> None:
    response = serve().client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert refused(response) == (400, "the body is no JSON object in UTF-8: send one")


def test_a_body_beyond_the_limit(serve: Serve) -> None:
    server = serve(limits=Limits(body_bytes=1000))

    assert server.chat("x" * 500).status_code == 200
    assert refused(server.chat("x" * 1000))[0] == 413


def test_a_model_that_does_not_answer_here(serve: Serve) -> None:
    server = serve()

    assert server.chat(model="trueline-policy/1").status_code == 200
    assert server.chat(model="trueline-policy").status_code == 200
    status, message = refused(server.chat(model="gpt-4"))
    assert status == 404
    assert message == (
        "the model gpt-4 does not answer here: name trueline-policy, or one of champion, trueline-policy/1"
    )


def test_unknown_paths_and_methods(serve: Serve) -> None:
    server = serve()

    assert refused(server.client.get("/v1/completions"))[0] == 404
    assert refused(server.client.get("/v1/chat/completions"))[0] == 405


def test_a_page_in_a_browser_is_kept_out(serve: Serve) -> None:
    server = serve()
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    plain = server.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"})

    assert refused(plain)[0] == 415  # no page may send JSON elsewhere without asking first
    assert refused(server.chat(headers={"Host": "rebound.example"}))[0] == 403


def test_keys_are_asked_for(serve: Serve) -> None:
    server = serve(keys={"ann": KEY})
    for headers in ({}, {"Authorization": KEY}, {"Authorization": "Bearer other"}, {"Authorization": f"Basic {KEY}"}):
        assert refused(server.chat(headers=headers))[0] == 401
        assert refused(server.client.get("/v1/models", headers=headers))[0] == 401

    assert server.chat(headers=WITH_KEY).status_code == 200
    assert server.client.get("/v1/models", headers=WITH_KEY).status_code == 200
    for open_path in ("/health", "/ready", "/version", "/metrics"):
        assert server.client.get(open_path).status_code == 200
    assert KEY not in server.client.get("/metrics").text


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n\nann: {KEY}\nben:{KEY}-of-ben\n")
    assert read_keys(file).owner(f"Bearer {KEY}-of-ben") == "ben"
    assert not read_keys(None)
    monkeypatch.setenv("TRUELINE_API_KEYS", f"carl:{KEY}")
    assert read_keys(None).owner(f"bearer {KEY}") == "carl"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no keys: write name:key, one a line"),
        ("ann", "line 1 is not name:key: correct it"),
        (f"#\n:{KEY}", "line 2 is not name:key: correct it"),
        ("ann:secret", "line 1: the key of ann is shorter than 16 characters"),
        (f"ann:{KEY}\nann:{KEY}2", "line 2 has a name or a key a second time: remove it"),
        (f"ann:{KEY}\nben:{KEY}", "line 2 has a name or a key a second time: remove it"),
    ],
)
def test_a_file_of_keys_that_cannot_be_meant(tmp_path: Path, lines: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(lines)
    with pytest.raises(InputError) as raised:
        read_keys(file)

    assert message in str(raised.value)
    assert "secret" not in str(raised.value)
    assert KEY not in str(raised.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "nothing")


def test_other_machines_are_let_in_with_keys_alone(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ann:{KEY}")
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, read_keys(None))
    for host in ("0.0.0.0", "192.168.1.2", "example.org"):
        check_host(host, read_keys(tmp_path / "keys"))
        with pytest.raises(InputError, match="can be reached from other machines, and there are no API keys"):
            check_host(host, read_keys(None))


def test_a_rate_is_a_bucket_that_fills_up() -> None:
    now = [0.0]
    rate = Rate(30, lambda: now[0])  # one every two seconds, and thirty at once
    for _ in range(30):
        rate.take("ann")
    rate.take("ben")
    with pytest.raises(RequestError, match="more than 30 requests a minute") as raised:
        rate.take("ann")
    assert (raised.value.status, raised.value.headers()) == (429, {"Retry-After": "2"})
    now[0] = 1.9
    with pytest.raises(RequestError):
        rate.take("ann")
    now[0] = 2.0
    rate.take("ann")
    now[0] = 1000.0
    for _ in range(30):
        rate.take("ann")
    with pytest.raises(RequestError):
        rate.take("ann")


def test_the_rate_of_a_key(serve: Serve) -> None:
    server = serve(keys={"ann": KEY, "ben": f"{KEY}-of-ben"}, limits=Limits(requests_per_minute=2))
    statuses = [server.chat(headers=WITH_KEY).status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
    assert server.chat(headers={"Authorization": f"Bearer {KEY}-of-ben"}).status_code == 200


def test_a_full_server_says_when_to_come_again(serve: Serve, parrots: Parrots) -> None:
    server = serve(limits=Limits(concurrent=1, waiting=2))
    parrot = parrots.loaded["trueline-policy/1"]
    parrot.may_answer.clear()
    with ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(server.chat), pool.submit(server.chat, n=2)]
        until(lambda: len(parrot.questions) == 2)
        full = server.chat()
        assert refused(full)[0] == 429
        assert full.headers["Retry-After"] == "1"
        parrot.may_answer.set()
        assert [each.result().status_code for each in under_way] == [200, 200]
    assert server.chat(n=3).status_code == 200
    assert refused(server.chat(n=4))[0] == 429


def test_a_request_beyond_its_time(serve: Serve, parrots: Parrots) -> None:
    server = serve(limits=Limits(seconds=0.2))
    parrot = parrots.loaded["trueline-policy/1"]
    parrot.may_answer.clear()

    assert refused(server.chat())[0] == 504
    *_, last, end = server.chat(stream=True).text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert end == ""
    assert parrot.given_up == 2
    assert 'requests_total{status="504",version="trueline-policy/1"} 2.0' in server.client.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(serve: Serve, parrots: Parrots, stream: bool) -> None:
    server = serve(limits=Limits(concurrent=1, waiting=0))
    parrot = parrots.loaded["trueline-policy/1"]
    parrot.may_answer.clear()
    leave_early(server, stream)
    until(lambda: parrot.given_up == 1)
    parrot.may_answer.set()

    assert server.chat().status_code == 200
    until(lambda: 'requests_total{status="499",version="trueline-policy/1"} 1.0' in server.client.get("/metrics").text)


def leave_early(server: Running, stream: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": stream})
    request = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall(f"{request}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.1)
