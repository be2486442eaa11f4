"""What all requests have in common: who asks, and a body of limited size."""

import asyncio
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from flows.serving.errors import RequestError
from flows.serving.limits import is_loopback
from flows.serving.service import Service


def respond(error: RequestError) -> JSONResponse:
    """Give the response that tells of an error."""
    return JSONResponse(error.body(), error.status, error.headers())


def admit(request: Request, service: Service) -> str | None:
    """Let a request in; gives the owner of its API key, None where no key is asked for.

    Raises:
        RequestError: it has no key that is known, has had its share, or comes from a page in a browser.
    """
    owner = service.keys.owner(request.headers.get("authorization"))
    if not service.keys:
        # Only this machine asks then. A page in a browser must not, whatever name its server gives this address.
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if not host or not is_loopback(host):
            raise RequestError(403, "without API keys this server answers to the names of this machine alone")
    service.rate.take(owner or (request.client.host if request.client else ""))
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "the body is not declared as JSON: send Content-Type: application/json")
    return owner


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """Read the body of a request.

    Raises:
        RequestError: it is longer than the limit, in bytes, or takes longer than so many seconds.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise RequestError(413, f"the body has over {limit} bytes, the limit here: send less")
    except ClientDisconnect:
        raise RequestError(400, "the request ended before its body") from None
    except TimeoutError:
        raise RequestError(408, "the body did not come in time: send it again") from None
    return bytes(body)
