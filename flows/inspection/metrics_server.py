"""Serving the figures of flows.inspection.metrics over HTTP, read anew at intervals."""

import sys
import time

from prometheus_client import CollectorRegistry, start_http_server

from flows.inspection.metrics import Collected, Reading, read
from tasks.common.errors import InputError


def serve(host: str, port: int, every: float) -> None:
    """Serve them until interrupted.

    Args:
        host: the address to listen on.
        port: 0 for a free one.
        every: seconds until they are read again.

    Raises:
        InputError: the address cannot be used.
    """
    collected = Collected(read())
    metrics = CollectorRegistry(auto_describe=False)
    metrics.register(collected)
    try:
        server, _ = start_http_server(port, host, metrics)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be served on ({error.strerror}): give another --serve PORT") from None
    sys.stderr.write(f"trueline: metrics at http://{host}:{server.server_port}/metrics\n")
    reported = _report(collected.reading, {})
    try:
        while True:
            time.sleep(every)
            collected.reading = read()
            reported = _report(collected.reading, reported)
    except KeyboardInterrupt:
        server.shutdown()
        server.server_close()


def _report(reading: Reading, before: dict[str, str]) -> dict[str, str]:
    """Print what cannot be read, once for each message in a row."""
    for source, message in reading.errors.items():
        if before.get(source) != message:
            sys.stderr.write(f"trueline: {source}: {message}\n")
    return reading.errors
