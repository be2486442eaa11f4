"""What runs on this machine is reached directly, whatever network proxy the surroundings name."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ASK = """
import sys
import tasks
import httpx, requests
from urllib.request import urlopen
from flows.server import is_healthy
for host in ("127.0.0.1", "localhost", "[::1]"):
    url = f"http://{host}:{sys.argv[2 if host == '[::1]' else 1]}"
    answers = [httpx.get(url, timeout=5).text, requests.get(url, timeout=5).text, is_healthy(url)]
    answers += [] if host == "[::1]" else [urlopen(url, timeout=5).read().decode()]
    print(host, *answers)
"""


class Yes(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"yes")

    def log_message(self, *_):
        pass


class OverIPv6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@pytest.fixture
def ports() -> Iterator[list[str]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Yes), OverIPv6(("::1", 0), Yes)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield [str(server.server_port) for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A proxy that takes every request and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.parametrize("spelt", [str.upper, str.lower])
def test_loopback_goes_through_no_proxy(ports: list[str], black_hole: str, spelt) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    proxies = {spelt(name): black_hole for name in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *ports],
        env={**clean, **proxies, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "127.0.0.1 yes yes True yes",
        "localhost yes yes True yes",
        "[::1] yes yes True",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "example.org, ::1"}, "example.org,::1,localhost,127.0.0.1"),
        ({"no_proxy": ".example.org", "NO_PROXY": "10.0.0.1"}, ".example.org,10.0.0.1,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_what_the_user_named_stays(given: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    script = "import tasks, os; print(os.environ['NO_PROXY'], os.environ['no_proxy'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [expected, expected]
