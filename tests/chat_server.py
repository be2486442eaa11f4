"""An OpenAI-compatible server on loopback that says what a test wants."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """Answers with `say(question)`, or first with each of `statuses`, and remembers what it was asked."""

    def __init__(self, say: Callable[[str], Any], statuses: list[int]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.statuses = say, statuses
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.body: bytes | None = None  # in place of an answer
        self.raw: Iterable[bytes] | None = None  # in place of all that a server sends, status and headers too

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the client has gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request | {"path": self.path})
        self.server.keys.append(self.headers["Authorization"])
        if self.server.raw is not None:
            self.close_connection = True
            for part in self.server.raw:
                self.wfile.write(part)
            return
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            message = {"role": "assistant", "content": self.server.say(request["messages"][-1]["content"])}
            body = self.server.body or json.dumps({"choices": [{"message": message}]}).encode()
        else:
            body = json.dumps({"error": {"message": f"key {self.headers['Authorization']} is not good"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def chat_server(say: Callable[[str], Any], statuses: list[int] | None = None) -> Iterator[ChatServer]:
    with ChatServer(say, statuses or []) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def answers_in(question: str) -> tuple[str, str]:
    """The answers A and B that the judge was shown."""
    first, second = (re.search(rf"<answer_{name}>\n(.*?)\n</answer_{name}>", question, re.DOTALL) for name in "AB")
    assert first and second
    return first[1], second[1]


def prefers(*liked: str) -> Callable[[str], str]:
    """A fair judge: the answer that holds one of the texts is better, where the other does not."""

    def say(question: str) -> str:
        first, second = (any(text in answer for text in liked) for answer in answers_in(question))
        return "I think so. [[tie]]" if first == second else f"I think so.\n[[{'A' if first else 'B'}]]"

    return say
