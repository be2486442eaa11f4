"""The server's paths."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version as installed_version

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flows.serving.chat_completions import ChatCompletions
from flows.serving.errors import RequestError
from flows.serving.http import admit, read_body, respond
from flows.serving.requests import read_feedback
from flows.serving.service import Service

MOST_FEEDBACK_BYTES = 100_000
Endpoint = Callable[[Request], Awaitable[Response]]
logger = logging.getLogger(__name__)


def make_app(service: Service) -> Starlette:
    """Make the application of a service."""
    paths = _Paths(service)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", ChatCompletions(service), methods=["POST"]),
            Route("/v1/models", paths.models),
            Route("/v1/models/{name:path}", paths.model),
            Route("/v1/feedback", paths.feedback, methods=["POST"]),
            Route("/health", paths.health),
            Route("/ready", paths.ready),
            Route("/version", paths.version),
            Route("/metrics", paths.metrics),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _unknown, Exception: _failed},
    )


class _Paths:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._began = int(time.time())

    async def models(self, request: Request) -> Response:
        """List who answers."""
        self._service.keys.owner(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [self._named(name) for name in self._names()]})

    async def model(self, request: Request) -> Response:
        """Describe one of those that answer."""
        self._service.keys.owner(request.headers.get("authorization"))
        name = request.path_params["name"]
        if name not in self._names():
            raise RequestError(404, f"the model {name} does not answer here", code="model_not_found", param="model")
        return JSONResponse(self._named(name))

    async def feedback(self, request: Request) -> Response:
        """Take a thumb."""
        owner = admit(request, self._service)
        feedback = read_feedback(await read_body(request, MOST_FEEDBACK_BYTES, self._service.limits.seconds))
        given = await asyncio.to_thread(self._service.thumbs.give, feedback, owner)
        self._service.figures_of(given.version).add_thumb(feedback.thumb, given.before)
        self._service.metrics.thumbs.labels(feedback.thumb, given.version.name).inc()
        return JSONResponse({"response_id": feedback.response_id, "thumb": feedback.thumb, "model": given.version.name})

    async def health(self, _request: Request) -> Response:
        """Say that the process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Say who answers, and what is wrong."""
        versions = self._service.versions
        faults = {alias: f"{failure.version.name}: {failure.reason}" for alias, failure in versions.failures().items()}
        current, is_stopping = versions.current(), self._service.is_stopping
        is_ready = versions.aliases[0] in current and not is_stopping
        is_well = is_ready and not faults and versions.registry_answers
        body = {
            "status": "ok" if is_well else "degraded" if is_ready else "stopping" if is_stopping else "waiting",
            "versions": {alias: loaded.version.name for alias, loaded in current.items()},
            "registry": "answers" if versions.registry_answers else "does not answer",
            "failed": faults,
        }
        return JSONResponse(body, 200 if is_ready else 503)

    async def version(self, _request: Request) -> Response:
        """Say whose server this is, and which versions answer."""
        current = self._service.versions.current()
        return JSONResponse(
            {
                "version": installed_version("trueline"),
                "models": {alias: loaded.version.name for alias, loaded in current.items()},
            }
        )

    async def metrics(self, _request: Request) -> Response:
        """Give the metrics to Prometheus."""
        return Response(self._service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    def _names(self) -> list[str]:
        current = self._service.versions.current().values()
        return [self._service.policy, *dict.fromkeys(loaded.version.name for loaded in current)]

    def _named(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "trueline"}


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return respond(error)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return respond(RequestError(error.status_code, f"{request.method} {request.url.path} is not served here"))


async def _failed(_request: Request, _error: Exception) -> Response:
    return respond(RequestError(500, "the server failed at this request: its log says why"))
