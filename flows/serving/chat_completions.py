"""POST /v1/chat/completions, as an ASGI application: a client that goes away frees its place at once."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message as Sent
from starlette.types import Receive, Scope, Send

from flows.serving.backends import Ended, Event, Part, Started
from flows.serving.errors import RequestError
from flows.serving.feedback import Answered
from flows.serving.http import admit, read_body, respond
from flows.serving.metrics import NO_VERSION
from flows.serving.requests import StreamOptions, read_chat
from flows.serving.service import Service
from flows.serving.versions import Loaded

CLIENT_GONE = 499
FAILED = RequestError(500, "the server failed at this request: its log says why")
logger = logging.getLogger(__name__)


@dataclass
class Choice:
    """One of a request's answers so far."""

    content: str = ""
    reasoning: str = ""
    whole: str = ""
    reason: str | None = None
    tokens: int = 0
    log_probs: list[dict[str, Any]] = field(default_factory=list)


class Exchange:
    """A request and what has become of it."""

    def __init__(self, began: float) -> None:
        """Begin with nothing known."""
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created, self.began = int(time.time()), began
        self.loaded: Loaded | None = None
        self.prompt_tokens = 0
        self.choices: list[Choice] = []
        self.first: float | None = None  # seconds to the first token
        self.status = 500
        self.has_started = False  # the response

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.began

    def head(self, kind: str) -> dict[str, Any]:
        """Give what every response has: which version answers."""
        assert self.loaded is not None
        version = self.loaded.version
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": version.name,
            "system_fingerprint": f"fp_{version.md5[:12]}",
        }

    def usage(self) -> dict[str, int]:
        """Give the tokens so far."""
        answered = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self.prompt_tokens + answered,
        }


class ChatCompletions:
    """Answers conversations."""

    def __init__(self, service: Service) -> None:
        """Answer by a service."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(time.monotonic())

        async def sending(message: Sent) -> None:
            if message["type"] == "http.response.start":
                exchange.has_started, exchange.status = True, message["status"]
            await send(message)

        try:
            await self._exchange(exchange, Request(scope, receive), sending)
        except RequestError as error:
            await _fail(exchange, error, scope, receive, sending)
        except Exception:
            logger.exception("a request failed")
            await _fail(exchange, FAILED, scope, receive, sending)
        finally:
            self._count(exchange)

    async def _exchange(self, exchange: Exchange, request: Request, send: Send) -> None:
        service, limits = self._service, self._service.limits
        owner = admit(request, service)
        asked, messages = read_chat(await read_body(request, limits.body_bytes, limits.seconds))
        question, names = service.question(asked, messages), service.route(asked, owner, messages)
        with ExitStack() as held:
            held.enter_context(service.places.take(question.answers))
            try:
                exchange.loaded = loaded = held.enter_context(service.versions.use(names))
            except KeyError:  # the version that the request names has been freed since it was looked up
                message = f"{names[-1]} does not answer any more: name another"
                raise RequestError(404, message, code="model_not_found") from None
            exchange.choices = [Choice() for _ in range(question.answers)]

            def remember() -> None:
                whole = [choice.whole for choice in exchange.choices]
                service.thumbs.remember(exchange.id, Answered(loaded.version, owner, messages, whole))

            async def work() -> None:
                async with aclosing(loaded.backend.answer(question)) as events:  # type: ignore[type-var]
                    if asked.stream:
                        await _stream(exchange, events, send, asked.stream_options, remember)
                    else:
                        response = await _whole(exchange, events)
                        remember()  # before a client can rate it
                        await response(request.scope, request.receive, send)

            if await _until_gone(work(), request, limits.seconds - exchange.seconds):
                answers = [(choice.content, choice.tokens) for choice in exchange.choices]
                service.figures_of(loaded.version).add_request(exchange.seconds, exchange.first, answers)
            else:
                exchange.status = CLIENT_GONE

    def _count(self, exchange: Exchange) -> None:
        metrics = self._service.metrics
        version = exchange.loaded.version.name if exchange.loaded else NO_VERSION
        metrics.requests.labels(str(exchange.status), version).inc()
        if exchange.loaded:
            metrics.seconds.labels(version).observe(exchange.seconds)
            usage = exchange.usage()
            metrics.tokens.labels("prompt", version).inc(usage["prompt_tokens"])
            metrics.tokens.labels("completion", version).inc(usage["completion_tokens"])
            if exchange.status >= 500:
                self._service.figures_of(exchange.loaded.version).add_error()


async def _until_gone(work: Any, request: Request, seconds: float) -> bool:  # noqa: ANN401 (a coroutine)
    """Do the work unless the client goes away; tells whether it was done.

    Raises:
        RequestError: the time is up.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        done, _ = await asyncio.wait({working, leaving}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            await working
            return True
        if leaving in done:
            return False
        raise RequestError(504, "the answer took longer than the limit here: ask for fewer tokens", code="timeout")
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, RequestError):
                await task


def _take(exchange: Exchange, event: Event) -> None:
    """Note what has been answered."""
    if isinstance(event, Started):
        exchange.prompt_tokens = event.prompt_tokens
        return
    choice = exchange.choices[event.choice]
    if isinstance(event, Ended):
        choice.reason, choice.whole = event.reason, event.whole
        return
    exchange.first = exchange.seconds if exchange.first is None else exchange.first
    choice.content += event.content
    choice.reasoning += event.reasoning
    choice.tokens += event.tokens
    choice.log_probs += event.log_probs


async def _whole(exchange: Exchange, events: AsyncIterator[Event]) -> JSONResponse:
    async for event in events:
        _take(exchange, event)
    choices = [
        {
            "index": number,
            "message": {"role": "assistant", "content": choice.content}
            | ({"reasoning_content": choice.reasoning} if choice.reasoning else {}),
            "logprobs": {"content": choice.log_probs} if choice.log_probs else None,
            "finish_reason": choice.reason,
        }
        for number, choice in enumerate(exchange.choices)
    ]
    return JSONResponse({**exchange.head("chat.completion"), "choices": choices, "usage": exchange.usage()})


async def _stream(
    exchange: Exchange,
    events: AsyncIterator[Event],
    send: Send,
    options: StreamOptions | None,
    at_end: Callable[[], object],
) -> None:
    """Send server-sent events: nothing before the first one shows that the request can be answered."""
    with_usage = options is not None and options.include_usage
    usage: dict[str, Any] = {"usage": None} if with_usage else {}

    async def chunk(choices: list[dict[str, Any]], **others: Any) -> None:  # noqa: ANN401
        content = {**exchange.head("chat.completion.chunk"), "choices": choices, **usage, **others}
        await _send_event(send, json.dumps(content, ensure_ascii=False))

    async for event in events:
        _take(exchange, event)
        if isinstance(event, Started):
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for number in range(len(exchange.choices)):
                await chunk([_delta(number, {"role": "assistant", "content": ""})])
        elif isinstance(event, Ended):
            await chunk([_delta(event.choice, {}, reason=event.reason)])
        elif delta := _shown(event):
            await chunk([_delta(event.choice, delta, log_probs=event.log_probs)])
    at_end()  # before a client can rate it
    if with_usage:
        await chunk([], usage=exchange.usage())
    await _send_event(send, "[DONE]", more=False)


def _shown(part: Part) -> dict[str, Any]:
    delta = {"content": part.content} if part.content or part.log_probs else {}
    return delta | ({"reasoning_content": part.reasoning} if part.reasoning else {})


def _delta(
    number: int, delta: dict[str, Any], *, log_probs: list[dict[str, Any]] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {
        "index": number,
        "delta": delta,
        "logprobs": {"content": log_probs} if log_probs else None,
        "finish_reason": reason,
    }


async def _send_event(send: Send, data: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})


async def _fail(exchange: Exchange, error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Tell of an error: by the status, or in a stream that has begun by its last event."""
    try:
        if exchange.has_started:
            await _send_event(send, json.dumps(error.body()), more=False)
        else:
            await respond(error)(scope, receive, send)
    except OSError:  # nobody listens any more
        logger.debug("the client has gone")
    exchange.status = error.status
