"""A thread that answers what it is asked, all requests side by side (continuous batching).

Sampling is that of tasks/learning/sampling/sampler.py: a request alone is answered as `generate` answers one prompt, to
the byte; beside others it differs by rounding only.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tasks.learning.sampling.sampler import RESOLUTION, sample
from tasks.learning.serving.live_batch import live_batch

PROMPT_TOKENS_AT_ONCE = 2048  # of new prompts read between two steps: those who are being answered wait meanwhile
logger = logging.getLogger(__name__)


class Token(NamedTuple):
    """A token of an answer."""

    id: int
    log_prob: float | None  # where asked for: by the model's own distribution, at temperature 1
    likeliest: list[tuple[int, float]]  # the likeliest tokens there with their log-probabilities, as many as asked for


Reason = Literal["stop", "length"]
Event = Token | Reason | Exception  # the last one of an answer is no token


class Wanted(NamedTuple):
    """How an answer is to be sampled."""

    max_new_tokens: int
    temperature: float  # divides the logits; 0 takes the likeliest token
    top_p: float = 1.0  # draw from the fewest tokens whose probabilities reach this sum
    log_probs: int | None = None  # likeliest tokens to report beside each; None: no log-probabilities at all


class Asked:
    """A prompt to answer, and the answer so far."""

    def __init__(self, prompt: Sequence[int], wanted: Wanted, noise: Tensor, report: Callable[[Event], object]) -> None:
        """Note what is asked.

        Args:
            prompt: token ids, at least one.
            wanted: how to sample.
            noise: (max_new_tokens,) float64 in [0, 1), on the CPU: the answer's random numbers.
            report: is called with each token and then with the reason of the end, in the worker's thread.
        """
        self.prompt, self.wanted, self.report = prompt, wanted, report
        self.tokens: list[int] = []
        self.is_cancelled = False
        self._noise = noise.tolist()

    @property
    def noise(self) -> float:
        """The random number of the next token."""
        number: float = self._noise[len(self.tokens)]
        return number


def noise(seed: int, answers: int, max_new_tokens: int) -> Tensor:
    """Draw the random numbers of several answers to one prompt, (answers, max_new_tokens), as `generate` does."""
    return torch.rand((answers, max_new_tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Worker:
    """Answers in a thread of its own, until it is closed."""

    def __init__(self, model: nn.Module, stops: Sequence[int], max_concurrent_sequences: int, threads: int) -> None:
        """Start the thread.

        Args:
            model: a causal language model, which nobody else uses or changes meanwhile.
            stops: tokens that end an answer.
            max_concurrent_sequences: answers sampled side by side; others wait.
            threads: of torch on the CPU.
        """
        self._model, self._stops, self._most, self._threads = model, set(stops), max_concurrent_sequences, threads
        self._batch = live_batch(model)
        self._waiting: deque[Asked] = deque()
        self._open: list[Asked] = []  # in the order of the batch
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)
        self._thread.start()

    def submit(self, asked: Asked) -> None:
        """Have a prompt answered as soon as there is room."""
        with self._changed:
            self._waiting.append(asked)
            self._changed.notify()

    def cancel(self, asked: Asked) -> None:
        """Give an answer up at the next step, if it has not ended; nothing more is reported of it then."""
        asked.is_cancelled = True

    @property
    def waiting(self) -> int:
        """Prompts that nothing has been answered to yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._open)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread when all that was submitted is answered or given up; waits for it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # each thread has its own number
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._open or self._is_closed)
                if not self._waiting and not self._open:
                    return
            try:
                self._turn()
            except Exception as error:  # one step that fails, for want of memory perhaps, must not end the server
                logger.exception("sampling failed")
                failed, self._open = self._open, []
                self._batch = live_batch(self._model)
                for asked in failed:
                    _tell(asked, error)

    def _turn(self) -> None:
        """Let new sequences join, and give every one a token."""
        for place in reversed(range(len(self._open))):
            if self._open[place].is_cancelled:
                self._leave(place)
        if self._open:
            self._draw(self._batch.step([asked.tokens[-1] for asked in self._open]), 0)
        if self._batch.takes_more and (new := list(self._next())):
            first = len(self._open)
            self._open += new  # before they are read: where that fails, they end with its error
            widths = [len(asked.prompt) + asked.wanted.max_new_tokens for asked in new]
            self._draw(self._batch.add([asked.prompt for asked in new], widths), first)

    def _next(self) -> Iterator[Asked]:
        tokens, room = 0, self._most - len(self._open)
        while self._waiting and room > 0 and tokens < PROMPT_TOKENS_AT_ONCE:
            asked = self._waiting.popleft()
            if not asked.is_cancelled:
                tokens, room = tokens + len(asked.prompt), room - 1
                yield asked

    def _draw(self, logits: Tensor, first: int) -> None:
        """Add a token to the sequences from `first` on, of the logits (n, V) behind them; those that end leave."""
        drawn = self._open[first : first + len(logits)]
        for asked, token in zip(drawn, draw(logits, drawn), strict=True):
            asked.tokens.append(token.id)
            if not asked.is_cancelled:
                _tell(asked, token)
        for place in reversed(range(first, first + len(drawn))):
            asked = self._open[place]
            is_stopped = asked.tokens[-1] in self._stops
            if is_stopped or len(asked.tokens) == asked.wanted.max_new_tokens:
                self._leave(place)
                _tell(asked, "stop" if is_stopped else "length")

    def _leave(self, place: int) -> None:
        self._batch.leave(place)
        self._open[place] = self._open[-1]
        self._open.pop()


def _tell(asked: Asked, event: Event) -> None:
    try:
        asked.report(event)
    except RuntimeError:  # the event loop that wanted it has ended
        asked.is_cancelled = True


def draw(logits: Tensor, asked: Sequence[Asked]) -> list[Token]:
    """Draw the next token of n answers, each by its own settings and random numbers, from logits (n, V)."""
    places: dict[tuple[float, float], list[int]] = {}
    for place, each in enumerate(asked):
        places.setdefault((each.wanted.temperature, each.wanted.top_p), []).append(place)
    ids = [0] * len(asked)
    for (temperature, top_p), group in places.items():
        numbers = torch.tensor([asked[place].noise for place in group], dtype=torch.float64, device=logits.device)
        own = logits if len(group) == len(asked) else logits[group]
        if temperature > 0 and top_p < 1:
            own = nucleus(own, temperature, top_p)
        for place, token in zip(group, sample(own, numbers, temperature).tokens.tolist(), strict=True):
            ids[place] = token
    return [_described(logits[place], ids[place], each.wanted.log_probs) for place, each in enumerate(asked)]


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Leave the fewest tokens whose probabilities at a temperature reach a sum, at least one; others become -inf.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".

    Args:
        logits: (n, V).
        temperature: above 0.
        top_p: the sum, between 0 and 1.
    """
    ordered, order = (logits.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    shares = (ordered.double() * RESOLUTION).long()
    before = shares.cumsum(dim=-1) - shares
    is_left_out = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before >= top_p * RESOLUTION)
    return logits.masked_fill(is_left_out, -torch.inf)


def _described(logits: Tensor, token: int, wanted: int | None) -> Token:
    if wanted is None:
        return Token(token, None, [])
    log_probs = logits.float().log_softmax(dim=-1)
    best = log_probs.topk(wanted)
    return Token(token, log_probs[token].item(), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
