"""Chat completions of an OpenAI-compatible server: asked patiently, and never twice for the same.

A server need not answer a request alike the next time. Its replies are data, kept under .trueline by the content of the
request, so that a rerun gives the same bytes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import httpx

from tasks.data.files import STATE, read_json, write_json
from tasks.errors import InputError

KEY_VARIABLE = "TRUELINE_JUDGE_API_KEY"
SETTING = "evaluate.llm_judge in params.yaml"
AT_ONCE = 8  # requests
SECONDS_TO_CONNECT, SECONDS_TO_REPLY = 10.0, 600.0  # a small server may have the others wait for one
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between two tries
TOO_EARLY = (408, 425, 429)  # what a client did may be done again later
LONGEST_DETAIL = 200  # characters of what a server says of a refusal
logger = logging.getLogger(__name__)


class Endpoint:
    """A server by its address, as an open connection; several threads may use it."""

    def __init__(self, url: str, replies: Path = STATE / "judge") -> None:
        """Read the key, if there is one, from the environment; it is in no file, message or request but the header's.

        Raises:
            InputError: no header can hold the key.
        """
        self._url, self._replies = url.rstrip("/"), replies
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError(f"{KEY_VARIABLE} holds characters that no key has: set it anew")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        patience = httpx.Timeout(SECONDS_TO_REPLY, connect=SECONDS_TO_CONNECT)
        self._client = httpx.Client(headers=headers, timeout=patience)
        self._has_given_up = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):  # an interrupted process leaves threads with requests under way
            self._client.close()

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
        kept = self._replies / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
        reply = _kept(kept)
        if reply is None:
            reply = self._ask(request)
            write_json(kept, {"model": request["model"], "reply": reply, "seal": _seal(kept, reply)})
        return reply

    def _ask(self, request: Mapping[str, Any]) -> str:
        fault = ConnectionError()
        for pause in (0.0, *PAUSES):
            if self._has_given_up.wait(pause):
                raise ConnectionError(f"{self._url} is not asked any more")
            try:
                response = self._client.post(f"{self._url}/chat/completions", json=request)
            except httpx.ReadTimeout:  # it has had its time
                raise TimeoutError(f"{self._url} has not answered within {SECONDS_TO_REPLY:g} seconds") from None
            except httpx.TransportError as error:
                fault = ConnectionError(f"{self._url} cannot be reached: {error}")
            else:
                if response.is_success:
                    return self._content(response)
                if response.status_code not in TOO_EARLY and not response.is_server_error:
                    raise self._refusal(response, request["model"])
                fault = ConnectionError(f"{self._url} answers with status {response.status_code}")
        raise fault

    def _content(self, response: httpx.Response) -> str:
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise InputError(
                f"{self._url} does not answer as an OpenAI-compatible server does: mend the url of {SETTING}"
            ) from None
        return content if isinstance(content, str) else ""  # null, where a model only thought

    def _refusal(self, response: httpx.Response, model: str) -> InputError:
        match response.status_code:
            case 401 | 403:  # what it says may hold part of the key
                wanted = "refuses the key" if self._key else "asks for a key"
                return InputError(f"{self._url} {wanted}: set {KEY_VARIABLE} to one that may use {model}")
            case 404:
                return InputError(f"{self._url} has no chat completions of {model}: mend url or model of {SETTING}")
        detail = " ".join(response.text.split())
        detail = (detail.replace(self._key, "…") if self._key else detail)[:LONGEST_DETAIL]
        return InputError(f"{self._url} refuses the request, status {response.status_code} ({detail}): mend {SETTING}")


def _kept(file: Path) -> str | None:
    """Give a reply that is kept, or None where there is none or it is damaged, which is told."""
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
