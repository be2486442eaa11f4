"""What is asked of a vLLM server, and what its refusals mean."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tasks.common.errors import InputError
from tasks.common.files import read_json
from tasks.common.safe_text import sentence

SECONDS_TO_CONNECT = 10.0
SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
CONNECTIONS = 512  # fewer than the files that a process may have open
SECONDS_TO_LOAD = 600.0
# How a server must have been started that runtime.vllm.url names.
REQUIRED = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --enable-scale-out --generation-config vllm "
    "--logprobs-mode processed_logprobs"
)


class ServerLostError(Exception):
    """The server has ended, or cannot be reached."""


class Sampling(NamedTuple):
    """How every prompt is answered."""

    max_new_tokens: int
    temperature: float
    stops: Sequence[int]  # ids that end an answer


class Sampled(NamedTuple):
    """An answer of n tokens."""

    tokens: list[int]
    log_probs: list[float]


class Client:
    """A server by its address."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet."""
        self.url = url.rstrip("/")

    def check_shape(self, folder: Path) -> None:
        """Compare the shape of the model that the server was started with, where its folder can be read, with another.

        Weights of another shape would end the server.

        Raises:
            InputError: they differ.
            ServerLostError: the server is gone.
        """
        try:
            answer = httpx.get(f"{self.url}/v1/models", timeout=SECONDS_TO_CONNECT)
            served = Path(str(answer.raise_for_status().json()["data"][0]["root"])) / "config.json"
        except httpx.TransportError as error:
            raise ServerLostError(f"{type(error).__name__} {error}".strip()) from error
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
            raise InputError(f"what answers at {self.url} is no vLLM server: start one as {REQUIRED}") from None
        if not served.is_file():
            return
        theirs, ours = read_json(served), read_json(folder / "config.json")
        for name in SHAPE:
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"the vLLM server at {self.url} serves a model of another shape ({name} is {theirs.get(name)}, the "
                    f"policy's is {ours.get(name)}): start it with the policy's, models/sft"
                )

    def load(self, folder: Path) -> None:
        """Have the server take the weights of a folder in the place of its own, and forget what it computed with those.

        Raises:
            InputError: it cannot.
            ServerLostError: it is gone.
        """
        request = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        asyncio.run(self._in_session(self._load, request))

    async def _load(self, session: httpx.AsyncClient, request: dict[str, Any]) -> None:
        for path, content in (("/collective_rpc", request), ("/reset_prefix_cache", {})):
            answer = await self._post(session, path, content, SECONDS_TO_LOAD)
            if answer.status_code != httpx.codes.OK:
                raise InputError(
                    f"the vLLM server at {self.url} cannot load the policy's weights from "
                    f"{request['kwargs']['weights_path']} ({_reason(answer)}): it must be able to read "
                    f"that folder (runtime.vllm.weights_folder), and run as {REQUIRED}"
                )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        how: Sampling,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Sampled]:
        """Answer all prompts, each by its own seed; `on_progress` is called with the number of new answers.

        Raises:
            InputError: the server refuses.
            ServerLostError: it is gone.
        """
        found: list[Sampled] = asyncio.run(self._in_session(self._sample, prompts, seeds, how, on_progress))
        return found

    async def _sample(
        self,
        session: httpx.AsyncClient,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        how: Sampling,
        on_progress: Callable[[int], object] | None,
    ) -> list[Sampled]:
        async def answered(prompt: Sequence[int], seed: int) -> Sampled:
            request = {"token_ids": list(prompt), "sampling_params": _sampling_params(how, seed)}
            answer = await self._post(session, "/inference/v1/generate", request)
            if answer.status_code != httpx.codes.OK:
                raise InputError(
                    f"the vLLM server at {self.url} refuses to answer ({_reason(answer)}): it must run as {REQUIRED}"
                )
            if on_progress is not None:
                on_progress(1)
            return _sampled(answer.json()["choices"][0])

        # Where one fails, the others end by themselves: given up while they connect, they would leave sockets open.
        found = await asyncio.gather(
            *(answered(*each) for each in zip(prompts, seeds, strict=True)), return_exceptions=True
        )
        answers = [each for each in found if isinstance(each, Sampled)]
        if failures := [each for each in found if isinstance(each, BaseException)]:
            raise failures[0]
        return answers

    async def _in_session(self, work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        async with httpx.AsyncClient(base_url=self.url, limits=httpx.Limits(max_connections=CONNECTIONS)) as session:
            return await work(session, *arguments)

    async def _post(
        self, session: httpx.AsyncClient, path: str, content: dict[str, Any], seconds: float | None = None
    ) -> httpx.Response:
        """Ask, without a limit of time unless one is given."""
        waiting = httpx.Timeout(seconds, connect=SECONDS_TO_CONNECT, pool=None)
        try:
            answer = await session.post(path, json=content, timeout=waiting)
            # Its engine is a process of its own: where that has ended, the server answers until it ends itself.
            if answer.is_server_error:
                health = await session.get("/health", timeout=SECONDS_TO_CONNECT)
                if health.is_server_error:
                    raise ServerLostError(_reason(answer))
        except httpx.TransportError as error:
            raise ServerLostError(f"{type(error).__name__} {error}".strip()) from error
        return answer


def _sampling_params(how: Sampling, seed: int) -> dict[str, Any]:
    """Sampling by temperature alone, whatever the model's own generation settings say."""
    return {
        "temperature": how.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "max_tokens": how.max_new_tokens,
        "ignore_eos": True,  # the stop tokens are ours
        "stop_token_ids": list(how.stops),
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


def _sampled(choice: dict[str, Any]) -> Sampled:
    return Sampled(choice["token_ids"], [each["logprob"] for each in choice["logprobs"]["content"]])


def _reason(answer: httpx.Response) -> str:
    """What the server says of a failure, or its status."""
    try:
        return sentence(str(answer.json()["error"]["message"]))
    except (ValueError, LookupError, TypeError):
        return f"status {answer.status_code}"
