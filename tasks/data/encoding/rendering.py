"""Conversations written in the chat template: the one place where templates run, under a limit of time and memory.

A chat template is a program that came with a model: it may loop for ever, take all memory, or fail on some rows.
"""

import html
import json
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from tasks.common.errors import InputError
from tasks.common.safe_text import shortened
from tasks.data.records import Message

if TYPE_CHECKING:  # transformers costs seconds to import
    from transformers import PreTrainedTokenizerBase

# Of the processor's time, for one conversation. A real template needs a thousandth of a second.
SECONDS = 5.0
# Bytes beyond what the process has when rendering begins.
MEMORY = 2**30
# What a template may add to a conversation: that many characters, and its texts that many times over.
CHARACTERS, COPIES = 100_000, 10
REASON_LENGTH = 300
CURE = "fix the row or choose another template (base.chat_template)"

Render = Callable[..., str]


class RefusedError(InputError):
    """A chat template does not write a conversation."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the chat template {reason}: {CURE}")
        self.reason = reason  # without whose it is and the cure, for one who knows these better


class EndlessError(RefusedError):
    """A chat template went beyond the limit of time, memory or length."""


class _OutOfTime(BaseException):  # no Exception: no library swallows it
    pass


@contextmanager
def rendering(tokenizer: "PreTrainedTokenizerBase") -> Iterator[Render]:
    """Give the function that writes conversations in a tokenizer's chat template.

    It takes messages, of which the first may have `tools`, and `generation_prompt`, whether the text shall end where
    the assistant is to answer. It raises a RefusedError where the template does not write the conversation.
    """

    def render(messages: Sequence[Message], *, generation_prompt: bool) -> str:
        turns: list[dict[str, Any]] = [{**message} for message in messages]
        tools: list[Any] | None = turns[0].pop("tools", None)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS if in_main_thread else 0)
            text = tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=generation_prompt
            )
        except (_OutOfTime, MemoryError) as error:
            fault = (
                f"runs over {SECONDS:g} seconds"
                if isinstance(error, _OutOfTime)
                else f"takes over {MEMORY / 2**30:g} GiB of memory"
            )
            raise EndlessError(fault) from None
        except Exception as error:  # whatever a template can do wrong
            raise RefusedError(f"refuses the conversation ({in_short(error)})") from None
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        assert isinstance(text, str)
        if len(text) > CHARACTERS + COPIES * sum(map(_length, messages)):
            raise EndlessError(f"writes {len(text)} characters for one conversation")
        return text

    in_main_thread = threading.current_thread() is threading.main_thread()  # the only one where Python takes signals
    with _bounded_memory():
        before = signal.signal(signal.SIGVTALRM, _out_of_time) if in_main_thread else None
        try:
            yield render
        finally:
            if in_main_thread:
                signal.signal(signal.SIGVTALRM, before)


def _length(message: Message) -> int:
    """Characters of a message, its calls and the functions that may be called."""
    beside = [message.get("tool_calls"), message.get("tools")]
    return len(message["content"]) + sum(len(json.dumps(each)) for each in beside if each)


def is_written(text: str, rendered: str) -> bool:
    """Tell whether a text stands in a rendered conversation: as it is, escaped, or with other white space."""
    stripped = text.strip()
    forms = (
        stripped,
        json.dumps(stripped, ensure_ascii=False)[1:-1],
        json.dumps(stripped)[1:-1],
        html.escape(stripped),
    )
    return any(form in rendered for form in forms) or " ".join(stripped.split()) in " ".join(rendered.split())


def is_number_written(value: float | None, rendered: str) -> bool:
    """Tell whether a number, a truth value or null stands in a rendered conversation: as JSON or as Jinja writes it."""
    return json.dumps(value) in rendered or str(value) in rendered


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process have no more than MEMORY beyond what it has (Linux)."""
    if sys.platform != "linux":
        yield
        return
    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + MEMORY
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _out_of_time(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _OutOfTime


def in_short(error: Exception) -> str:
    """Give what a template says in few words; it may quote the whole row."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, REASON_LENGTH)
