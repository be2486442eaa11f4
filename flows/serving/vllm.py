"""Answers by vLLM, a process of its own for each version: it lives in another environment than this one.

Prompts are written and encoded here, as in training, and handed over as token ids.
"""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from flows.serving.backends import Ended, Event, Part, Question, Started
from flows.serving.errors import RequestError
from flows.serving.limits import Limits
from flows.serving.prompts import answer_length, encoded
from flows.serving.text import Decoder, Splitter
from tasks.common.children import child, end_group
from tasks.common.errors import InputError
from tasks.common.files import STATE
from tasks.data.encoding.context import usable_context
from tasks.data.encoding.tokens import load_tokenizer
from tasks.registry.serving.versions import ServedVersion
from tasks.settings.base import Reasoning

LOGS = STATE / "vllm"
START_SECONDS = 900.0  # large weights, and kernels that are compiled
QUIET = ("VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "HF_HUB_OFFLINE=1")
UNREACHABLE = "vLLM does not answer: try again later"


def check_program(program: str) -> str:
    """Find the program vllm.

    Raises:
        InputError: it does not exist.
    """
    found = shutil.which(program)
    if found is None:
        raise InputError(
            f"the program {program} does not exist: install vLLM in an environment of its own and name its program by "
            "--vllm ENVIRONMENT/bin/vllm"
        )
    return str(Path(found).absolute())


def start(
    command: Sequence[str], folder: Path, version: ServedVersion, limits: Limits, reasoning: Reasoning | None
) -> "VllmBackend":
    """Start `vllm serve` on a version, and wait until it answers.

    Args:
        command: the program, and further options of `vllm serve`.
        folder: the weights.
        version: whose they are.
        limits: what may be asked.
        reasoning: how it is marked.

    Raises:
        InputError: it does not start.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{version.version}.log"
    port, (program, *options) = _free_port(), command
    serve = ["serve", str(folder.absolute()), "--host", "127.0.0.1", "--port", str(port)]
    # Without the model's own generation_config: answers are sampled as they are evaluated.
    own = ["--served-model-name", version.name, "--generation-config", "vllm"]
    with ExitStack() as held:
        file = held.enter_context(log.open("w", encoding="utf-8"))
        process = held.enter_context(child(["env", *QUIET, program, *serve, *own, *options], stdout=file, stderr=file))
        held.callback(end_group, process)
        _wait_until_healthy(port, process, log)
        return VllmBackend(folder, version, port, limits, reasoning, process, held.pop_all())


def _wait_until_healthy(port: int, process: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while True:
            try:
                if client.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"vLLM did not start: {log} says why")
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class VllmBackend:
    """A version in a process of vLLM."""

    def __init__(  # noqa: PLR0917
        self,
        folder: Path,
        version: ServedVersion,
        port: int,
        limits: Limits,
        reasoning: Reasoning | None,
        process: "subprocess.Popen[str]",
        held: ExitStack,
    ) -> None:
        """Take over a process that answers; closing `held` ends it."""
        from transformers import AutoConfig

        self._tokenizer = load_tokenizer(folder)
        self._context = usable_context(AutoConfig.from_pretrained(folder, local_files_only=True))
        self._decoder = Decoder(self._tokenizer, reasoning)
        self._url, self._model, self._limits = f"http://127.0.0.1:{port}", version.name, limits
        self._process, self._held = process, held
        self._running = 0

    @property
    def is_broken(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def load(self) -> tuple[int, int]:
        """Answers under way; vLLM's own metrics tell which of them wait."""
        return self._running, 0

    def close(self) -> None:
        """End the process."""
        self._held.close()

    async def answer(self, question: Question) -> AsyncIterator[Event]:
        """Answer a question, see `Backend`."""
        prompt = await asyncio.to_thread(encoded, self._tokenizer, question)
        length = answer_length(len(prompt), question, self._context, self._limits.prompt_tokens)
        is_reasoning = self._decoder.opens_reasoning(prompt)
        answers = [
            _Answer(Splitter(self._decoder.marks, [], is_reasoning=is_reasoning)) for _ in range(question.answers)
        ]
        self._running += question.answers
        try:
            # Loopback without encryption: certificates, which take long to load, are not needed.
            async with (
                httpx.AsyncClient(trust_env=False, verify=False, timeout=None) as client,
                client.stream(
                    "POST", f"{self._url}/v1/completions", json=self._request(prompt, length, question)
                ) as sent,
            ):
                if sent.status_code != httpx.codes.OK:
                    raise _refusal(sent.status_code, await sent.aread())
                yield Started(len(prompt))
                async for chunk in _events(sent):
                    for choice in chunk.get("choices", []):
                        for event in answers[choice["index"]].take(choice, chunk.get("usage") or {}):
                            yield event
        except httpx.HTTPError as error:
            raise RequestError(502, UNREACHABLE, code="engine_unreachable") from error
        finally:
            self._running -= question.answers

    def _request(self, prompt: list[int], length: int, question: Question) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": length,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "n": question.answers,
            "seed": question.seed % 2**63,
            "stop": list(question.stops),
            "logprobs": question.log_probs,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }


class _Answer:
    """One answer while it comes."""

    def __init__(self, splitter: Splitter) -> None:
        self._splitter, self._text, self._tokens = splitter, "", 0

    def take(self, choice: Mapping[str, Any], usage: Mapping[str, Any]) -> list[Event]:
        """Read a piece of the choice, and the tokens of it so far."""
        number, reason = choice["index"], choice.get("finish_reason")
        self._text += choice.get("text") or ""
        tokens = max(self._tokens, usage.get("completion_tokens", self._tokens))
        piece = self._splitter.advance(self._text, is_end=reason is not None)
        part = Part(number, piece.content, piece.reasoning, tokens - self._tokens, _log_probs(choice.get("logprobs")))
        self._tokens = tokens
        return [part] if reason is None else [part, Ended(number, reason, self._splitter.whole.strip())]


def _log_probs(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Write log-probabilities of completions as chat completions have them."""
    if not found:
        return []
    likeliest = found.get("top_logprobs") or [{}] * len(found["tokens"])
    return [
        {**_named(token, log_prob), "top_logprobs": [_named(*each) for each in (others or {}).items()]}
        for token, log_prob, others in zip(found["tokens"], found["token_logprobs"], likeliest, strict=True)
    ]


def _named(token: str, log_prob: float) -> dict[str, Any]:
    return {"token": token, "logprob": log_prob, "bytes": list(token.encode())}


async def _events(sent: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in sent.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            content = json.loads(data)
            if "error" in content:
                raise _refusal(500, data.encode())
            yield content


def _refusal(status: int, body: bytes) -> RequestError:
    """Pass on what vLLM refuses; what it cannot do is an error of this server."""
    try:
        content = json.loads(body)
        message = str((content.get("error") or content)["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        message = f"it answers with status {status}"
    return RequestError(status if 400 <= status < 500 else 502, f"vLLM: {message}", code="engine_refused")
