"""Chat completions of an OpenAI-compatible server: asked patiently, and never twice for the same.

A server may answer the same request differently the next time. Its replies are data, saved under .trueline by the
content of the request, so that a rerun gives the same bytes.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Timer
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from tasks.common.errors import InputError
from tasks.common.files import STATE, read_json, write_json

KEY_VARIABLE = "TRUELINE_JUDGE_API_KEY"
SETTING = "evaluate.llm_judge in params.yaml"
AT_ONCE = 8  # requests
SECONDS_TO_CONNECT, SECONDS_TO_REPLY = 10.0, 600.0  # a small server may have the others wait for one
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between two tries
TOO_EARLY = (408, 425, 429)  # what a client did may be done again later
LONGEST_DETAIL = 200  # characters of what a server says of a refusal
MOST_BYTES = 2**20  # of an answer: a verdict has a few thousand
logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a server sent."""

    status: int
    encoding: str  # of the body as it came; empty where it is plain
    body: bytes  # at most one byte more than `MOST_BYTES`


class Endpoint:
    """A server by its address; several threads may ask it."""

    def __init__(self, url: str, replies: Path = STATE / "judge", setting: str = SETTING) -> None:
        """Read the key, if there is one, from the environment; it is in no file, message or request but the header's.

        Args:
            url: of the server.
            replies: the folder in which replies are saved.
            setting: what messages tell the user to correct.

        Raises:
            InputError: no header can hold the key.
        """
        self._url, self._replies, self._setting = url.rstrip("/"), replies, setting
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"{KEY_VARIABLE} holds characters that no key has: set it anew")
        # Nothing is unpacked: a small answer could become one of gigabytes.
        self._headers = {"Accept-Encoding": "identity"} | (
            {"Authorization": f"Bearer {self._key}"} if self._key else {}
        )
        self._certificates = httpx.create_ssl_context()
        self._has_given_up = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Begin no further request; those under way end by themselves."""
        self._has_given_up.set()

    def reply(self, request: Mapping[str, Any]) -> str:
        """Give the model's reply to a request, which has the fields of the chat completions API.

        Raises:
            InputError: the server refuses the request, or is no such server.
            ConnectionError: it cannot be reached, or is overloaded, after several tries.
            TimeoutError: it has not answered in time.
        """
        content = json.dumps([self._url, request], sort_keys=True)
        saved = self._replies / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
        reply = _saved(saved)
        if reply is None:
            reply = self._ask(request)
            write_json(saved, {"model": request["model"], "reply": reply, "seal": _seal(saved, reply)})
        return reply

    def _ask(self, request: Mapping[str, Any]) -> str:
        fault = ConnectionError()
        for pause in (0.0, *PAUSES):
            if self._has_given_up.wait(pause):
                raise ConnectionError(f"{self._url} is not asked any more")
            try:
                answer = self._post(request)
            except httpx.TransportError as error:
                fault = ConnectionError(f"{self._url} cannot be reached: {error}")
            else:
                if 200 <= answer.status < 300:
                    return self._content(answer)
                if answer.status not in TOO_EARLY and answer.status < 500:
                    raise self._refusal(answer, request["model"])
                fault = ConnectionError(f"{self._url} answers with status {answer.status}")
        raise fault

    def _post(self, request: Mapping[str, Any]) -> Answer:
        patience = httpx.Timeout(SECONDS_TO_REPLY, connect=SECONDS_TO_CONNECT)
        with (
            httpx.Client(headers=self._headers, timeout=patience, verify=self._certificates) as client,
            self._in_time(client),
            client.stream("POST", f"{self._url}/chat/completions", json=request) as response,
        ):
            body = bytearray()
            for part in response.iter_raw():
                body += part[: MOST_BYTES + 1 - len(body)]
                if len(body) > MOST_BYTES:
                    break
            return Answer(response.status_code, response.headers.get("Content-Encoding", ""), bytes(body))

    @contextmanager
    def _in_time(self, client: httpx.Client) -> Iterator[None]:
        """End a request that has had its time, though the server may send a byte now and then."""
        until = time.monotonic() + SECONDS_TO_REPLY
        alarm = Timer(SECONDS_TO_REPLY, client.close)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        except httpx.InvalidURL as error:
            raise InputError(f"{self._url} is no address ({error}): correct the url of {self._setting}") from None
        except Exception as error:
            if isinstance(error, httpx.ReadTimeout) or time.monotonic() >= until:
                raise TimeoutError(f"{self._url} has not answered within {SECONDS_TO_REPLY:g} seconds") from None
            raise
        finally:
            alarm.cancel()

    def _content(self, answer: Answer) -> str:
        if len(answer.body) > MOST_BYTES:
            raise InputError(
                f"{self._url} answers a question of a few words with over {MOST_BYTES:,} bytes: correct url or model "
                f"of {self._setting}"
            )
        try:
            if answer.encoding not in ("", "identity"):
                raise ValueError
            content = json.loads(answer.body)["choices"][0]["message"]["content"]
            if content is None:  # where a model only thought
                return ""
            # Halves of a pair that JSON has as two escapes become one character; one alone is none.
            return str.encode(content, "utf-16", "surrogatepass").decode("utf-16", "replace")
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InputError(
                f"{self._url} does not answer as an OpenAI-compatible server does: correct the url of {self._setting}"
            ) from None

    def _refusal(self, answer: Answer, model: str) -> InputError:
        match answer.status:
            case 401 | 403:  # what it says may hold part of the key
                wanted = "refuses the key" if self._key else "asks for a key"
                return InputError(f"{self._url} {wanted}: set {KEY_VARIABLE} to one that may use {model}")
            case 404:
                return InputError(
                    f"{self._url} has no chat completions of {model}: correct url or model of {self._setting}"
                )
            case _:
                pass
        detail = " ".join(answer.body[: 10 * LONGEST_DETAIL].decode(errors="replace").split())
        detail = (detail.replace(self._key, "…") if self._key else detail)[:LONGEST_DETAIL]
        return InputError(
            f"{self._url} refuses the request, status {answer.status} ({detail}): correct {self._setting}"
        )


def _saved(file: Path) -> str | None:
    """Give a saved reply; None where there is none, or it is damaged, which is logged."""
    if not file.exists():
        return None
    with suppress(InputError, KeyError, UnicodeError):
        content = read_json(file)
        if content["seal"] == _seal(file, content["reply"]):
            return str(content["reply"])
    logger.warning("%s is damaged: the judge is asked again", file)
    return None


def _seal(file: Path, reply: str) -> str:
    """Hash a reply and its name, which follows from the request: another's reply in its place is not it."""
    return hashlib.sha256(f"{file.name} {reply}".encode(errors="surrogatepass")).hexdigest()
