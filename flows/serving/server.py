"""Running the server: load, listen, and end in good order."""

import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import uvicorn

from flows.serving.app import make_app
from flows.serving.backends import Backend
from flows.serving.canary import Canary
from flows.serving.feedback import Thumbs
from flows.serving.limits import Keys, Limits, check_host
from flows.serving.reporting import Reporter
from flows.serving.service import Service
from flows.serving.versions import Versions
from tasks.common.errors import InputError
from tasks.registry.promotion.versions import CHAMPION
from tasks.registry.serving.versions import AliasReader, ServedVersion, weights
from tasks.settings.params import Params

# Longer than clients and proxies keep a connection without requests: a server that closes one as the next request
# comes loses it. OpenAI's clients keep theirs for 5 seconds, most proxies for 60.
KEEP_ALIVE_SECONDS = 75


class Serving(NamedTuple):
    """How to serve."""

    host: str
    port: int
    keys: Keys
    limits: Limits
    canary: Canary | None
    poll_seconds: float
    wait: bool  # for a champion, where there is none yet
    figures_seconds: float
    feedback_folder: Path


Loader = Callable[[Path, ServedVersion], Backend]


def serve(params: Params, serving: Serving, load: Loader) -> None:
    """Serve the champion until SIGTERM or Ctrl-C: requests under way are answered, then the figures are written.

    Args:
        params: all settings.
        serving: how.
        load: loads the weights in a folder.

    Raises:
        InputError: the address cannot be used or is not safe, there is no champion, or it cannot be loaded.
    """
    check_host(serving.host, serving.keys)
    listening = _listen(serving.host, serving.port)
    _log_lines()
    aliases = [CHAMPION, *([serving.canary.alias] if serving.canary else [])]
    versions = Versions(aliases, AliasReader(params), lambda version: load(weights(version.md5, version.name), version))
    # uvicorn raises the signal again when it has ended: what follows must be done all the same.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        versions.start(serving.poll_seconds, wait=serving.wait)
        service = Service(
            params,
            versions,
            limits=serving.limits,
            keys=serving.keys,
            canary=serving.canary,
            thumbs=Thumbs(serving.feedback_folder),
        )
        reporter = Reporter(params, service, serving.canary, serving.figures_seconds)
        try:
            _run(service, listening, serving)
        finally:
            reporter.stop()
    except KeyboardInterrupt:
        pass
    finally:
        versions.stop()
        listening.close()
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.is_stopping = True
        super().handle_exit(sig, frame)


def _run(service: Service, listening: socket.socket, serving: Serving) -> None:
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(serving.limits.seconds) + 5,
    )
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    current = service.versions.current()
    names = ", ".join(f"{alias} {loaded.version.name}" for alias, loaded in current.items()) or "no champion yet"
    sys.stderr.write(f"trueline: {names} at http://{shown}:{port}/v1\n")
    _Server(config, service).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be served on ({error.strerror}): give another --port") from None
    return listening


def _log_lines() -> None:
    """Print what happens to versions; the libraries' own lines only where something is wrong."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("flows.serving").setLevel(logging.INFO)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
