"""Speaks what the rollout engine uses of vLLM's protocol, from a thread of this process, by a plain transformers model.

It notes every request. A test may have it fail (`failures`: what the next answers do) or ignore new weights.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM


class VllmStub:
    def __init__(self, folder=None):
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[str] = []
        self.keeps_its_weights, self.is_dead, self.reload_error = False, False, None
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval() if folder else None
        self.root = folder or "nowhere"
        self.lock = threading.Lock()
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"stub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    @property
    def asked(self):
        """What was asked for answers, in the order of the prompts."""
        return sorted((content for path, content in self.requests if path.endswith("generate")), key=str)

    def reload(self, folder):
        if self.reload_error:
            return 500, {"error": {"message": self.reload_error}}
        if not self.keeps_its_weights:
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        return 200, {"results": [None]}

    @torch.no_grad()
    def generate(self, tokens, settings):
        generator = torch.Generator().manual_seed(settings["seed"])
        prompt = list(tokens)
        found: list[dict[str, float]] = []
        while len(found) < settings["max_tokens"]:
            logits = self.model(torch.tensor([tokens])).logits[0, -1].float() / settings["temperature"]
            token = int(torch.multinomial(logits.softmax(0), 1, generator=generator))
            tokens = [*tokens, token]
            found.append({"token_id": token, "logprob": logits.log_softmax(0)[token].item()})
            if token in settings["stop_token_ids"]:
                break
        return {"choices": [{"token_ids": tokens[len(prompt) :], "logprobs": {"content": found}}]}


class Server(ThreadingHTTPServer):
    request_queue_size = 100


class Handler(BaseHTTPRequestHandler):
    stub: VllmStub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(503 if self.stub.is_dead else 200, {"data": [{"id": "policy", "root": str(self.stub.root)}]})

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.stub.lock:
            self.stub.requests.append((self.path, content))
            if self.path == "/collective_rpc":
                self.reply(*self.stub.reload(content["kwargs"]["weights_path"]))
            elif self.path == "/reset_prefix_cache":
                self.reply(200, {"success": True})
            elif (failure := self.stub.failures.pop(0) if self.stub.failures else None) is None:
                self.reply(200, self.stub.generate(content["token_ids"], content["sampling_params"]))
            elif failure == "drops the connection":
                self.close_connection = True
            elif failure == "its engine has died":
                self.stub.is_dead = True
                self.reply(500, {"error": {"message": "EngineCore encountered an issue"}})
            else:
                self.reply(404, {"detail": "Not Found"})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
