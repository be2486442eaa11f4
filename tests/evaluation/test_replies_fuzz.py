"""Whatever a judge's server sends: a text, or one bounded sentence; never a traceback, nor a wait without an end."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.common import chat_endpoint as endpoint
from tasks.common.chat_endpoint import Endpoint
from tasks.common.errors import InputError
from tasks.common.safe_text import LONGEST_SENTENCE
from tasks.evaluation.llm_judge.comparisons import _verdict
from tasks.stage import classify
from tests.chat_server import chat_server

pytestmark = pytest.mark.fuzz
SEEDS = int(os.environ.get("TRUELINE_FUZZ_SEEDS", "200"))
LONGEST = 5.0  # seconds for one request, in which a busy machine does other things too
TEXTS = [
    "[[A]]",
    "[[b]] or [[tie]]",
    "",
    " ",
    "\x00\x1b[31m",
    "\ud83d",
    "😀",
    "[[" * 999,
    "[[ " + " " * 999,
    "x" * 9999,
]


@pytest.fixture(autouse=True)
def _patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries without a pause, and little time for a reply."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(endpoint, "SECONDS_TO_REPLY", 0.5)
    monkeypatch.setattr(endpoint, "PAUSES", (0.0,))
    monkeypatch.setattr(endpoint, "Event", lambda: SimpleNamespace(wait=lambda _: False, set=lambda: None))


@pytest.mark.parametrize("kind", ["shape", "body", "head", "bytes", "packed"])
def test_any_reply_is_a_text_or_an_error(kind: str) -> None:
    outcomes: dict[str, int] = {}
    with chat_server(lambda _: "yes") as server, Endpoint(server.url) as opened:
        for seed in range(SEEDS):
            chance = random.Random(f"{kind} {seed}")
            server.raw = list(REPLIES[kind](chance))
            request = {"model": "judge", "messages": [{"role": "user", "content": f"{kind} {seed}"}]}
            began = time.monotonic()
            try:
                text = opened.reply(request)
            except (InputError, ConnectionError, TimeoutError) as error:
                fault, message = classify(error)
                outcomes[fault] = outcomes.get(fault, 0) + 1
                assert message.isprintable(), seed
                assert len(message) < LONGEST_SENTENCE + 200
            else:
                outcomes["text"] = outcomes.get("text", 0) + 1
                text.encode()
                _verdict(text)
                assert opened.reply(request) == text, seed
            assert time.monotonic() - began < LONGEST, seed
    assert outcomes.keys() <= {"text", "input", "transient"}
    assert ("text" in outcomes) == (kind in ("shape", "head"))


def shaped(chance: random.Random) -> Iterator[bytes]:
    """JSON that is nearly what it should be."""
    content: Any = chance.choice([*TEXTS, None, 7, [], {}, True, [{"type": "text", "text": "[[A]]"}]])
    message: Any = chance.choice([{"content": content}] * 6 + [None, [content], content, {"contents": content}])
    choices: Any = chance.choice([[{"message": message}]] * 6 + [[], {}, {"0": message}, [message], message, None])
    whole: Any = chance.choice([{"choices": choices}] * 6 + [choices, [choices], {"choice": choices}])
    yield from response(json.dumps(whole).encode(chance.choice(["utf-8"] * 4 + ["utf-16", "utf-32", "utf-8-sig"])))


def any_body(chance: random.Random) -> Iterator[bytes]:
    """No JSON at all, too deep, too long, cut off."""
    whole = json.dumps({"choices": [{"message": {"content": "x" * 99}}]}).encode()
    body = chance.choice(
        [
            chance.randbytes(chance.randrange(999)),
            b"[" * 99_999,
            b'{"a":' * 9_999,
            b"9" * 9_999,
            whole[: chance.randrange(len(whole))],
            b"x" * (endpoint.MOST_BYTES + 1),
            b"data: " + whole + b"\n\ndata: [DONE]\n\n",
            b"nan",
            b"\xef\xbb\xbf",
            b"<html>" * 9,
        ]
    )
    yield from response(body)


def any_head(chance: random.Random) -> Iterator[bytes]:
    """Every status, and headers that are none."""
    body = json.dumps({"choices": [{"message": {"content": chance.choice(TEXTS[:4])}}]}).encode()
    status = chance.choice(
        [200, 200, 200, 201, 204, 206, 100, 301, 304, 400, 401, 404, 408, 418, 429, 500, 503, 599, 999]
    )
    length = chance.choice([len(body)] * 6 + [0, -1, len(body) - 1, len(body) + 9, 10**30, "a", "1, 2"])
    extra = chance.choice(
        [
            b"",
            b"A: " + chance.randbytes(9).replace(b"\n", b""),
            b"A: " + b"b" * 10**6,
            b"Transfer-Encoding: chunked",
            b"Location: /",
            b"Content-Type: text/html; charset=none",
            b"Set-Cookie: a=b",
            b"\xff: \xff",
            b": a",
        ]
    )
    head = f"HTTP/1.{chance.choice('1110')} {status} Reason\r\nContent-Length: {length}\r\n".encode()
    yield head + extra + (b"\r\n\r\n" if extra else b"\r\n")
    yield body


def any_bytes(chance: random.Random) -> Iterator[bytes]:
    """What is no HTTP, or ends early."""
    whole = b"".join(response(b'{"choices": [{"message": {"content": "[[A]]"}}]}'))
    yield chance.choice(
        [chance.randbytes(chance.randrange(2000)), whole[: chance.randrange(len(whole) - 9)], b"", b"\0" * 9**5]
    )


def packed(chance: random.Random) -> Iterator[bytes]:
    """A body in an encoding that nobody asked for."""
    name = chance.choice([b"gzip", b"br", b"zstd", b"deflate", b"GZIP, gzip", b"\xff"])
    yield from response(chance.randbytes(999), b"Content-Encoding: " + name + b"\r\n")


def response(body: bytes, headers: bytes = b"") -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    yield body


REPLIES: dict[str, Callable[[random.Random], Iterator[bytes]]] = {
    "shape": shaped,
    "body": any_body,
    "head": any_head,
    "bytes": any_bytes,
    "packed": packed,
}
