"""The command `trueline metrics`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tasks.common.errors import InputError


def metrics(
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write FILE.prom for node_exporter instead of printing.")
    ] = None,
    serve: Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65535, help="Serve them over HTTP.")] = None,
    host: Annotated[str, typer.Option(help="The address to serve on.")] = "127.0.0.1",
    every: Annotated[float, typer.Option(min=1.0, help="With --serve, seconds until they are read again.")] = 60.0,
) -> None:
    """Print metrics for Prometheus: last run, queue, champion, disks."""
    from flows.inspection import metrics as reading
    from flows.inspection.metrics_server import serve as serve_them

    if output and serve is not None:
        raise InputError("--output writes one file, and --serve goes on: give one of them")
    if serve is not None:
        serve_them(host, serve, every)
        return
    read = reading.read()
    for source, message in read.errors.items():
        sys.stderr.write(f"trueline: {source}: {message}\n")
    if output:
        reading.write(read, output)
    else:
        sys.stdout.write(reading.exposition(read))
