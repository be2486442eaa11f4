"""Running the server: load, listen, and end in good order."""

import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import uvicorn

from flows.serving.app import make_app
from flows.serving.canary import Canary
from flows.serving.feedback import Thumbs
from flows.serving.limits import Keys, Limits, check_host
from flows.serving.loaders import loader_of
from flows.serving.reporting import Reporter
from flows.serving.service import Service
from flows.serving.versions import Versions
from tasks.common.errors import InputError
from tasks.registry.promotion.versions import CHAMPION
from tasks.registry.serving.versions import AliasReader, weights
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


def serve(params: Params, serving: Serving, vllm: Sequence[str] | None = None) -> None:
    """Serve the champion until SIGTERM or Ctrl-C: requests under way are answered, then the figures are written.

    Args:
        params: all settings.
        serving: how.
        vllm: the program vllm and further options of `vllm serve`; None: our own sampler.

    Raises:
        InputError: the address cannot be used or is not safe, there is no champion, it cannot be loaded, or the program
            or the device does not exist.
    """
    check_host(serving.host, serving.keys)
    with _listening(serving.host, serving.port) as listening:
        _log_lines()
        load = loader_of(params, serving.limits, vllm)
        aliases = [CHAMPION, *([serving.canary.alias] if serving.canary else [])]
        reader = AliasReader(params)
        versions = Versions(aliases, reader, lambda version: load(weights(version.md5, version.name), version))
        with _stopped_by_signals():
            try:
                versions.start(serving.poll_seconds, wait=serving.wait)
                _answer(params, versions, listening, serving)
            finally:
                versions.stop()


def _answer(params: Params, versions: Versions, listening: socket.socket, serving: Serving) -> None:
    """Answer requests until a signal comes, and then write the figures."""
    limits, keys, canary = serving.limits, serving.keys, serving.canary
    thumbs = Thumbs(serving.feedback_folder)
    service = Service(params, versions, limits=limits, keys=keys, canary=canary, thumbs=thumbs)
    reporter = Reporter(params, service, canary, serving.figures_seconds)
    try:
        _run(service, listening, serving)
    finally:
        reporter.stop()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Leave the block at SIGTERM as at Ctrl-C: uvicorn raises both again when it has ended, and more is to be done."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
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


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    with ExitStack() as held:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = held.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be served on ({error.strerror}): give another --port") from None
        yield listening


def _log_lines() -> None:
    """Print what happens to versions; the libraries' own lines only where something is wrong."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("flows.serving").setLevel(logging.INFO)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
