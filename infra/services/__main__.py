"""Start the servers, say how a checkout uses them, and end them on Ctrl+C: `make services`."""

import argparse
import shlex
import signal
import sys
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from infra.services.services import PORTS, Services
from tasks.common.errors import InputError
from tasks.common.files import STATE


def main() -> int:
    """Serve until SIGINT or SIGTERM; gives the exit code."""
    options = _options()
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    options.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(options.state / "lock", timeout=0):
            return _serve(Services(options.state, dict(options.port)), asked, options.upgrade)
    except Timeout:
        return _refuse(f"the servers of {options.state} run already")
    except InputError as error:
        return _refuse(str(error))


def _serve(services: Services, asked: threading.Event, upgrade: bool) -> int:
    try:
        _say("Starting PostgreSQL, S3, MLflow and Prefect; the first time takes a minute.")
        for dump in services.start(upgrade=upgrade):
            _say(f"Before the tables were migrated: {dump}")
        _say(_usage(services))
        while not asked.wait(1):
            if ended := services.ended():
                return _refuse(f"{ended.name} has ended: {ended.log} says why", code=1)
        return 0
    finally:
        services.stop()


def _usage(services: Services) -> str:
    environment = shlex.quote(f"{services.folder}/env")
    address = "127.0.0.1:{}".format
    return f"""
PostgreSQL  {address(services.ports["postgres"])}         databases mlflow, prefect
S3          http://{address(services.ports["s3"])}  buckets trueline-dvc (DVC's remote), trueline-mlflow
MLflow      http://{address(services.ports["mlflow"])}
Prefect     http://{address(services.ports["prefect"])}

In another terminal, for a run by the clock:
  . {environment} && .venv/bin/trueline schedule --cron "0 3 * * 1"

Passwords are in {services.passwords} and {services.keys}, which you alone can read.
Ctrl+C ends all four. The data stays, and make services goes on with it."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make services SERVICES=", description=__doc__)
    parser.add_argument("--state", type=Path, default=STATE / "services", help="the folder of all data")
    parser.add_argument(
        "--port", type=_port, action="append", default=[], metavar="NAME=PORT", help=f"of {', '.join(PORTS)}"
    )
    parser.add_argument("--upgrade", action="store_true", help="dump and migrate tables of an older MLflow or Prefect")
    return parser.parse_args()


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in PORTS or not number.isdecimal() or not 0 < int(number) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PORT, with a name of {', '.join(PORTS)}")
    return name, int(number)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _refuse(sentence: str, code: int = 2) -> int:
    sys.stderr.write(f"trueline: {sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
