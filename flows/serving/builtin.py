"""Answers by our own sampler, all requests to a version side by side."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch

from flows.serving.backends import Ended, Event, Part, Question, Started
from flows.serving.errors import RequestError
from flows.serving.prompts import answer_length, encoded
from flows.serving.text import AnswerText, Decoder
from tasks.data.encoding.tokens import load_tokenizer
from tasks.learning.models.loading import context_length, load_policy
from tasks.learning.sampling.copies import sampling_copy
from tasks.learning.sampling.sampler import stop_tokens
from tasks.learning.serving.worker import Asked, Token, Wanted, Worker, noise
from tasks.settings.params import Params


class BuiltinBackend:
    """A version in this process's memory."""

    def __init__(
        self, folder: Path, params: Params, max_concurrent_sequences: int, max_prompt_tokens: int | None
    ) -> None:
        """Load a model.

        Args:
            folder: model and tokenizer.
            params: all settings.
            max_concurrent_sequences: answers sampled side by side; others wait.
            max_prompt_tokens: of the longest prompt that is taken; None: as the context allows.

        Raises:
            InputError: the folder holds no model that can be used.
        """
        self._tokenizer = load_tokenizer(folder)
        model = sampling_copy(load_policy(folder, params, trainable=False))
        self._context, self._max_prompt_tokens = context_length(model), max_prompt_tokens
        self._decoder = Decoder(self._tokenizer, params.base.reasoning)
        self._worker = Worker(
            model, stop_tokens(model, self._tokenizer), max_concurrent_sequences, params.runtime.threads
        )
        self._tokenizing = asyncio.Lock()

    @property
    def is_broken(self) -> bool:
        """Whether it cannot answer any more."""
        return not self._worker.is_alive

    @property
    def load(self) -> tuple[int, int]:
        """Answers under way, and those that wait."""
        return self._worker.running, self._worker.waiting

    def close(self) -> None:
        """Give the memory back."""
        self._worker.close()
        del self._worker
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    async def answer(self, question: Question) -> AsyncIterator[Event]:
        """Answer a question, see `Backend`."""
        async with self._tokenizing:
            prompt = await asyncio.to_thread(encoded, self._tokenizer, question)
        length = answer_length(len(prompt), question, self._context, self._max_prompt_tokens)
        yield Started(len(prompt))
        events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def report(choice: int) -> Any:  # noqa: ANN401
            return lambda event: loop.call_soon_threadsafe(events.put_nowait, (choice, event))

        wanted = Wanted(length, question.temperature, question.top_p, question.log_probs)
        numbers = noise(question.seed, question.answers, length)
        asked = [Asked(prompt, wanted, numbers[choice], report(choice)) for choice in range(question.answers)]
        texts = [AnswerText(self._decoder, prompt, question.stops) for _ in asked]
        try:
            for each in asked:
                self._worker.submit(each)
            open_choices = set(range(len(asked)))
            while open_choices:
                choice, event = await events.get()
                if choice not in open_choices:  # a stop string has ended it
                    continue
                if isinstance(event, Exception):
                    raise RequestError(500, "the model failed at this request: try again later") from event
                text = texts[choice]
                if isinstance(event, Token):
                    piece = text.add(event.id)
                    yield Part(choice, piece.content, piece.reasoning, 1, self._log_probs(event))
                    if not text.is_stopped:
                        continue
                    self._worker.cancel(asked[choice])
                    event = "stop"
                else:
                    piece = text.end()
                    yield Part(choice, piece.content, piece.reasoning, 0, [])
                open_choices.remove(choice)
                yield Ended(choice, "stop" if text.is_stopped else event, text.whole.strip())
        finally:
            for each in asked:
                self._worker.cancel(each)

    def _log_probs(self, token: Token) -> list[dict[str, Any]]:
        if token.log_prob is None:
            return []
        likeliest = [self._named(place, log_prob) for place, log_prob in token.likeliest]
        return [{**self._named(token.id, token.log_prob), "top_logprobs": likeliest}]

    def _named(self, token: int, log_prob: float) -> dict[str, Any]:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}
