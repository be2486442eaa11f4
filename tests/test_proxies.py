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

from flows.prefect_server.address import check_reachable
from tasks.common.errors import InputError
from tasks.common.network import check_proxies

ROOT = Path(__file__).parents[1]
OURS = "localhost,127.0.0.1,::1,127.0.0.0/8,0.0.0.0"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ASK = """
import sys
import tasks
import httpx, requests
from urllib.request import urlopen
from flows.prefect_server.address import is_healthy
for host in ("127.0.0.1", "127.0.0.3", "localhost", "[::1]"):
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
    servers = [ThreadingHTTPServer(("", 0), Yes), OverIPv6(("::1", 0), Yes)]
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
        env={**clean, **proxies, "PREFECT_API_URL": "http://127.0.0.3:4200/api", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "127.0.0.1 yes yes True yes",
        "127.0.0.3 yes yes True yes",
        "localhost yes yes True yes",
        "[::1] yes yes True",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OURS),
        ({"NO_PROXY": "example.org, ::1"}, f"example.org,::1,{OURS.replace(',::1', '')}"),
        ({"no_proxy": ".example.org", "NO_PROXY": "10.0.0.1"}, f".example.org,10.0.0.1,{OURS}"),
        ({"NO_PROXY": "[fd00::1],fe80::/10,10.0.0.0/8"}, f"fd00::1,10.0.0.0/8,{OURS}"),
        ({"MLFLOW_TRACKING_URI": "http://me:pw@127.0.0.2:5000/a"}, f"{OURS},127.0.0.2"),
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


@pytest.mark.parametrize(
    ("proxy", "fault"),
    [
        ("socks5://me:hush-hush@127.0.0.1:9", "needs socksio and PySocks, which are not installed: .venv/bin/pip "),
        ("socks4://me:hush-hush@127.0.0.1:9", "which does not begin with http:// or https://"),
        ("http://me:hush-hush@host:port", "which is no address (Port could not be cast"),
        (" http://127.0.0.1:9", "which does not begin with http://"),
    ],
)
@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
def test_a_proxy_that_no_client_can_be_made_with(monkeypatch, name: str, proxy: str, fault: str) -> None:
    """httpx would end in an ImportError or ValueError, also on the way to this machine."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(InputError) as refused:
        check_proxies()
    assert str(refused.value).startswith(f"{name} is ")
    assert fault in str(refused.value)
    assert str(refused.value).endswith(f", or unset {name}")
    assert "hush" not in str(refused.value)
    with pytest.raises(InputError, match=f"{name} is "):
        check_reachable("http://127.0.0.1:9/api")


def test_a_proxy_may_lack_its_scheme(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "127.0.0.1:3128")
    check_proxies()
