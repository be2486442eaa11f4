"""trueline serve."""

import socket
from pathlib import Path

import pytest

KEYS = "ann:a-key-of-sixteen-characters"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and there are no API keys"),
        (["--host", "no.such.host.example", "--api-keys", "keys"], "no.such.host.example:8000 cannot be served on"),
        (["--canary", "challenger"], "--canary challenger is not an alias and percent, such as challenger:10"),
        (["--api-keys", "nothing"], "nothing cannot be read (FileNotFoundError): correct --api-keys"),
        (["--engine", "vllm", "--vllm", "nowhere/vllm", "--port", "0"], "the program nowhere/vllm does not exist"),
    ],
)
def test_what_cannot_be_served(trueline, arguments: list[str], sentence: str) -> None:
    Path("keys").write_text(KEYS)
    code, out, err = trueline("serve", *arguments)

    assert (code, out) == (2, "")
    assert err.startswith(f"trueline: {sentence}")
    assert len(err.splitlines()) == 1


def test_a_port_that_is_taken(trueline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = trueline("serve", "--port", str(port))

    assert code == 2
    assert err == f"trueline: 127.0.0.1:{port} cannot be served on (Address already in use): give another --port\n"
