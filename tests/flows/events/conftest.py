"""A receiver of messages on loopback, and a checkout to send them from."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.common.safe_text import ADDRESSES
from tests.conftest import ROOT


class Receiver:
    """Takes what is posted; `status` is its answer, and `delay` the seconds that it takes."""

    def __init__(self, port: int = 0) -> None:
        self.received: list[tuple[str, Any]] = []
        self.status, self.delay = 200, 0.0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(receiver.delay)
                if receiver.status < 300:
                    receiver.received.append((self.path, body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.port}/hook-of-secret-words"

    @property
    def titles(self) -> list[str]:
        return [body["title"] for _path, body in self.received]

    @property
    def texts(self) -> list[str]:
        return [body["message"] for _path, body in self.received]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> Path:
    """A folder with the shipped settings, whose messages go to the receiver."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ADDRESSES, receiver.address)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    configure()
    return tmp_path


def configure(**sections: dict[str, Any]) -> None:
    """Write the shipped settings with some replaced."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, section in sections.items():
        settings[name] |= section
    Path("params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
