"""Speaks what the server uses of vLLM's protocol: `vllm serve FOLDER …`, /health, /v1/completions by token ids.

It answers with its name and the length of the prompt, a word a chunk, and notes every request in STUB_REQUESTS. A
temperature above 9 is refused. With STUB_FAILS it does not start.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(os.environ["STUB_REQUESTS"]).open("a") as file:
            file.write(json.dumps(request | {"path": self.path, "arguments": sys.argv[1:]}) + "\n")
        if request["temperature"] > 9:
            self.plain(400, {"object": "error", "message": "the temperature is too high", "code": 400})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = [
            "<think>",
            "hm",
            "</thi",
            "nk>",
            " from",
            f" {request['model']}",
            " with",
            f" {len(request['prompt'])}",
        ]
        for number, word in enumerate(words, start=1):
            for choice in range(request["n"]):
                reason = "stop" if number == len(words) else None
                found = None
                if request["logprobs"] is not None:
                    found = {"tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [{word: -0.5, "else": -1.5}]}
                entry = {"index": choice, "text": word, "finish_reason": reason, "logprobs": found}
                self.event({"choices": [entry], "usage": {"completion_tokens": number}})
        self.event({"choices": [], "usage": {"completion_tokens": 2 * len(words)}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, content):
        self.chunk(f"data: {json.dumps(content)}\n\n".encode())

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def plain(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if os.environ.get("STUB_FAILS"):
        sys.exit("no GPU was found")
    arguments = sys.argv[1:]
    assert arguments[0] == "serve"
    assert Path(arguments[1], "config.json").is_file()
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Stub).serve_forever()
