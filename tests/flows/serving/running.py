"""A server of tiny models on loopback, for the length of a block."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from flows.serving.app import make_app
from flows.serving.backends import Backend, Ended, Event, Part, Question, Started
from flows.serving.canary import Canary
from flows.serving.feedback import Thumbs
from flows.serving.limits import Keys, Limits
from flows.serving.service import Service
from flows.serving.versions import Versions
from tasks.registry.serving.versions import ServedVersion
from tasks.settings.params import Params

POLL_SECONDS = 0.02


def version(number: int) -> ServedVersion:
    return ServedVersion("trueline-policy", number, f"{number:032x}.dir")


class Aliases:
    """Stands in for MLflow: says where aliases lead, or fails."""

    def __init__(self, **aliases: int) -> None:
        self.aliases: dict[str, int] = aliases
        self.fault: Exception | None = None

    def read(self, alias: str) -> ServedVersion | None:
        if self.fault:
            raise self.fault
        return self.last(alias)

    def last(self, alias: str) -> ServedVersion | None:
        return version(self.aliases[alias]) if alias in self.aliases else None


class Parrot:
    """Answers with its name and the last message, a word a time, as soon as it may."""

    def __init__(self, name: str) -> None:
        self.name, self.is_closed, self.is_broken = name, False, False
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.questions: list[Question] = []
        self.given_up = 0

    @property
    def load(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        self.is_closed = True

    async def answer(self, question: Question) -> AsyncIterator[Event]:
        assert not self.is_closed
        self.questions.append(question)
        yield Started(7)
        try:
            while not self.may_answer.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        assert not self.is_closed
        words = f"{self.name} {question.messages[-1]['content']}".split(" ")
        for choice in range(question.answers):
            for number, word in enumerate(words):
                yield Part(choice, f" {word}" if number else word, "", 1, [])
            yield Ended(choice, "stop", " ".join(words))


class Running:
    """A server and what is behind it."""

    def __init__(self, service: Service, versions: Versions, port: int) -> None:
        self.service, self.versions = service, versions
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def chat(self, text: str = "hello", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)


@contextmanager
def running(
    params: Params,
    load: Callable[[ServedVersion], Backend],
    aliases: Aliases,
    folder: Path,
    *,
    limits: Limits | None = None,
    keys: dict[str, str] | None = None,
    canary: Canary | None = None,
    wait: bool = False,
) -> Iterator[Running]:
    versions = Versions(["champion", *([canary.alias] if canary else [])], aliases, load)
    versions.start(POLL_SECONDS, wait=wait)
    service = Service(
        params, versions, limits=limits or Limits(), keys=Keys(keys or {}), canary=canary, thumbs=Thumbs(folder)
    )
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    running = Running(service, versions, listening.getsockname()[1])
    try:
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join()
        versions.stop()
        listening.close()
