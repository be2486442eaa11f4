import gzip
import itertools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.common import chat_endpoint as endpoint
from tasks.common.chat_endpoint import KEY_VARIABLE, PAUSES, Endpoint
from tasks.common.errors import InputError
from tasks.stage import classify
from tests.chat_server import chat_server

KEY = "sk-very-secret"
REQUEST = {"model": "judge", "messages": [{"role": "user", "content": "Größer?"}], "temperature": 0}


@pytest.fixture(autouse=True)
def pauses(tmp_path, monkeypatch):
    """Work in an empty folder with a key, and note the pauses in place of sleeping."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which nobody asks for a judge on this machine
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    taken: list[float] = []
    monkeypatch.setattr(endpoint, "Event", lambda: SimpleNamespace(wait=taken.append, set=lambda: None))
    return taken


def ask(server, request=REQUEST):
    with Endpoint(server.url) as opened:
        return opened.reply(request)


def test_a_reply_comes_from_the_chat_completions_with_the_key_in_the_header():
    with chat_server(lambda question: f"You asked: {question}") as server:
        assert ask(server) == "You asked: Größer?"
    assert server.requests == [REQUEST | {"path": "/v1/chat/completions"}]
    assert server.keys == [f"Bearer {KEY}"]


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    with chat_server(lambda _: "yes") as server:
        assert ask(server) == "yes"
    assert server.keys == [None]


def test_nothing_is_asked_twice_and_another_request_is_another():
    with chat_server(lambda question: question) as server:
        assert [ask(server) for _ in range(3)] == ["Größer?"] * 3
        assert len(server.requests) == 1
        ask(server, REQUEST | {"model": "another"})
        assert len(server.requests) == 2
    assert ask(server) == "Größer?"  # the server is gone


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "without a seal", "another request's"])
def test_a_damaged_reply_is_asked_for_again(damage, caplog):
    with chat_server(lambda question: question) as server:
        ask(server)
        [saved] = Path(".trueline/judge").iterdir()
        whole = saved.read_text()
        ask(server, REQUEST | {"messages": [{"role": "user", "content": "B"}]})
        [other] = set(Path(".trueline/judge").iterdir()) - {saved}
        spoilt = {
            "flipped": whole.replace("Größer?", "Größes?"),
            "cut": whole[:-10],
            "empty": "",
            "without a seal": '{"model": "judge", "reply": "Kleiner!"}',
            "another request's": other.read_text(),
        }
        saved.write_text(spoilt[damage])
        assert ask(server) == "Größer?"
        assert len(server.requests) == 3
    assert caplog.messages == [f"{saved} is damaged: the judge is asked again"]
    assert saved.read_text() == whole


def test_a_slash_behind_the_address_is_no_other_server():
    with chat_server(lambda _: "yes") as server:
        for url in (server.url, server.url + "/"):
            with Endpoint(url) as opened:
                opened.reply(REQUEST)
    assert len(server.requests) == 1


def test_a_thought_without_words_is_an_empty_reply():
    with chat_server(lambda _: None) as server:
        assert ask(server) == ""


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_an_overloaded_server_is_asked_again_after_a_pause(status, pauses):
    with chat_server(lambda _: "yes", [status, status]) as server:
        assert ask(server) == "yes"
    assert len(server.requests) == 3
    assert pauses == [0, *PAUSES[:2]]


def test_one_that_stays_overloaded_is_worth_another_run(pauses):
    with (
        chat_server(lambda _: "yes", [500] * 20) as server,
        pytest.raises(ConnectionError, match="status 500") as error,
    ):
        ask(server)
    assert pauses == [0, *PAUSES]
    assert classify(error.value)[0] == "transient"
    assert not Path(".trueline").exists()


def test_one_that_is_away_is_worth_another_run():
    with chat_server(lambda _: "yes") as server:
        url = server.url
    with Endpoint(url) as opened, pytest.raises(ConnectionError, match=f"{url} cannot be reached") as error:
        opened.reply(REQUEST)
    assert classify(error.value)[0] == "transient"


def test_one_that_does_not_answer_is_worth_another_run(monkeypatch, pauses):
    monkeypatch.setattr(endpoint, "SECONDS_TO_REPLY", 0.05)
    blocked = threading.Event()
    with chat_server(lambda _: str(blocked.wait(5))) as server:
        with Endpoint(server.url) as opened, pytest.raises(TimeoutError, match=r"within 0\.05 seconds") as error:
            opened.reply(REQUEST)
        blocked.set()
    assert pauses == [0]
    assert classify(error.value)[0] == "transient"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, f"refuses the key: set {KEY_VARIABLE} to one that may use judge"),
        (403, f"refuses the key: set {KEY_VARIABLE}"),
        (404, "has no chat completions of judge: correct url or model of evaluate.llm_judge in params.yaml"),
        (400, "refuses the request, status 400 "),
        (302, "refuses the request, status 302 "),
    ],
)
def test_a_refusal_is_reported_with_its_cure_and_without_the_key(status, message):
    with chat_server(lambda _: "yes", [status]) as server, pytest.raises(InputError) as error:
        ask(server)
    assert message in str(error.value)
    assert KEY not in str(error.value)
    assert len(server.requests) == 1


def test_a_missing_key_is_reported(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    with chat_server(lambda _: "yes", [401]) as server, pytest.raises(InputError, match=f"a key: set {KEY_VARIABLE}"):
        ask(server)


@pytest.mark.parametrize("key", ["sk-ä", "sk-\x01"])
def test_a_key_that_no_header_can_hold_is_not_shown(key, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(InputError, match="set it anew") as error:
        Endpoint("http://127.0.0.1/v1")
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_a_server_of_another_kind_is_refused(body):
    with chat_server(lambda _: "yes") as server:
        server.body = body
        with pytest.raises(InputError, match="does not answer as an OpenAI-compatible server does: correct the url"):
            ask(server)


def test_the_key_is_in_no_file():
    with chat_server(lambda _: "yes") as server:
        ask(server)
    files = [path for path in Path().rglob("*") if path.is_file()]
    [saved] = [json.loads(path.read_text()) for path in files]
    assert (saved["model"], saved["reply"], sorted(saved)) == ("judge", "yes", ["model", "reply", "seal"])


def test_who_has_given_up_begins_no_request_nor_waits_for_one(monkeypatch):
    monkeypatch.setattr(endpoint, "Event", threading.Event)
    with chat_server(lambda _: "yes") as server, Endpoint(server.url) as opened:
        opened.give_up()
        with pytest.raises(ConnectionError, match="is not asked any more"):
            opened.reply(REQUEST)
    assert server.requests == []


# --- Bounds


HEAD = b"HTTP/1.1 200 OK\r\n"
TOO_LONG = r"with over 1,048,576 bytes: correct url or model of evaluate\.llm_judge"


def chunks(count=None):
    """A body of parts of 64 KiB, as many as one asks for, or without an end."""
    part = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    return itertools.chain(
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(part, *([count] if count else []))
    )


@pytest.mark.parametrize(
    "parts",
    [
        chunks,
        lambda: itertools.chain([HEAD + b"Content-Length: 419430400\r\n\r\n"], itertools.repeat(b"x" * 2**16)),
        lambda: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b"x" * 2**16)),  # until the connection ends
    ],
    ids=["endless", "400 MB", "no length"],
)
def test_a_reply_of_any_size_is_read_within_bounds(parts):
    sent = itertools.count()
    with chat_server(lambda _: "yes") as server:
        server.raw = (part for part, _ in zip(parts(), sent, strict=False))
        with pytest.raises(InputError, match=TOO_LONG):
            ask(server)
    assert next(sent) < 512  # parts of 64 KiB: what lay in the system's buffers


@pytest.mark.parametrize(
    "parts",
    [
        lambda: itertools.chain([HEAD + b"Content-Length: 99\r\n\r\n"], dripped(b" ")),
        lambda: itertools.chain([HEAD], dripped(b"A: b\r\n")),
        lambda: dripped(b"H"),
    ],
    ids=["body", "headers", "first line"],
)
def test_a_reply_that_drips_has_its_time_and_no_more(parts, monkeypatch, pauses):
    monkeypatch.setattr(endpoint, "SECONDS_TO_REPLY", 0.3)
    began = time.monotonic()
    with chat_server(lambda _: "yes") as server:
        server.raw = parts()
        with pytest.raises(TimeoutError, match=r"within 0\.3 seconds"):
            ask(server)
    assert time.monotonic() - began < 10
    assert pauses == [0]


def dripped(part):
    for _ in range(80):
        yield part
        time.sleep(0.05)


def test_a_small_reply_does_not_become_a_large_one():
    packed = gzip.compress(b" " * 10**8)
    with chat_server(lambda _: "yes") as server:
        length = str(len(packed)).encode()
        server.raw = [HEAD + b"Content-Encoding: gzip\r\nContent-Length: " + length + b"\r\n\r\n" + packed]
        with pytest.raises(InputError, match="does not answer as an OpenAI-compatible server does"):
            ask(server)


def as_reply(content):
    return b'{"choices": [{"message": {"content": ' + content + b"}}]}"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b"7" * 5000,
        as_reply(b"7" * 5000),
        as_reply(b"[]"),
        as_reply(b"{}"),
        b"\xff\xfe",
        as_reply(b'"\xff"'),
        b"",
    ],
    ids=["deep", "digits", "digits in place", "list", "object", "half", "no UTF-8", "nothing"],
)
def test_a_reply_that_json_cannot_hold_is_refused(body):
    with chat_server(lambda _: "yes") as server:
        server.raw = [HEAD + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body]
        with pytest.raises(InputError, match="does not answer as an OpenAI-compatible server does"):
            ask(server)


def test_a_half_of_a_character_is_none_and_two_are_one():
    with chat_server(lambda _: "yes") as server:
        server.body = as_reply(rb'"\ud83d\ude00 \ud83d [[A]]"')
        assert [ask(server), ask(server)] == ["😀 \ufffd [[A]]"] * 2


@pytest.mark.parametrize("url", ["http://a b", "http://%zz", "http://\u2028", "http://a:b:c", "http://[v1.x]"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises((InputError, ConnectionError)) as error, Endpoint(url) as opened:
        opened.reply(REQUEST)
    assert classify(error.value)[0] in ("input", "transient")


def test_a_refusal_does_not_reach_the_terminal():
    body = b"\x1b]0;owned\x07\x1b[31m" + b"x" * 10**6
    with chat_server(lambda _: "yes") as server:
        server.raw = [b"HTTP/1.1 400 Bad\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body]
        with pytest.raises(InputError, match="refuses the request, status 400") as error:
            ask(server)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
