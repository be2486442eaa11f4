"""What answers requests: one loaded version, by our sampler or behind vLLM."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

from tasks.data.records import Message


class Question(NamedTuple):
    """A conversation to answer, with all that a request left open filled in."""

    messages: Sequence[Message]
    answers: int
    max_tokens: int
    is_max_tokens_given: bool  # else an answer may be shorter where the context ends
    temperature: float
    top_p: float
    seed: int
    stops: Sequence[str]
    log_probs: int | None  # likeliest tokens to report beside each; None: no log-probabilities


class Started(NamedTuple):
    """The prompt has been read."""

    prompt_tokens: int


class Part(NamedTuple):
    """Some more of an answer."""

    choice: int
    content: str
    reasoning: str
    tokens: int
    log_probs: list[dict[str, Any]]  # as OpenAI's clients read them


class Ended(NamedTuple):
    """An answer is whole."""

    choice: int
    reason: str  # stop or length
    whole: str  # the text with its reasoning, as the model wrote it


Event = Started | Part | Ended


class Backend(Protocol):
    """One version that is loaded."""

    def answer(self, question: Question) -> AsyncIterator[Event]:
        """Answer a question: `Started`, then parts, then an end of each answer. Closing the iterator gives it up.

        Raises:
            RequestError: it cannot be answered.
        """

    @property
    def is_broken(self) -> bool:
        """Whether it cannot answer any more, and has to be loaded again."""

    @property
    def load(self) -> tuple[int, int]:
        """Answers under way, and those that wait."""

    def close(self) -> None:
        """Give the memory back; nothing is under way any more."""
