"""A chat template is a foreign program: what it does wrong is one sentence, and it ends in time."""

import signal
import threading
import time
from typing import Any

import pytest

from tasks.data.encoding.rendering import EndlessError, RefusedError, is_written, rendering
from tasks.data.records import Message
from tests.conftest import CHATML, make_tokenizer

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def written(tokenizer: Any, template: str, content: str = "send it") -> str:
    tokenizer.chat_template = template
    with rendering(tokenizer) as render:
        return render([Message(role="user", content=content)], generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NESTED + "{% endfor %}", "runs over 0.2 seconds"),
        ("{% set ns = namespace(x=2) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}", "runs over"),
        ("{{ 'x' * 10 ** 11 }}", "takes over 0.125 GiB of memory"),
        (
            "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "0.125 GiB",
        ),
        ("{{ 'x' * 100200 }}", "writes 100200 characters for one conversation"),
    ],
)
def test_a_template_that_knows_no_end_is_stopped(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str, message: str
) -> None:
    monkeypatch.setattr("tasks.data.encoding.rendering.SECONDS", 0.2)
    monkeypatch.setattr("tasks.data.encoding.rendering.MEMORY", 2**27)
    started = time.process_time()
    with pytest.raises(EndlessError, match=message):
        written(tokenizer, template)
    assert time.process_time() - started < 5  # memory that is asked for at once takes its time
    assert written(tokenizer, CHATML).startswith("<|im_start|>user\nsend it")  # the next one is none the worse


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\nsystem\x1b[2J role') }}", "(no system\\x1b[2J role)"),
        ("{{ 1 / 0 }}", "(division by zero)"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ 'a'.index('b') }}", "(substring not found)"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "maximum recursion depth"),
        ("{% for m in messages %}", "(Unexpected end of template"),
        ("{{ raise_exception(messages[0].content) }}", "x" * 149 + "…" + "x" * 150 + ")"),
    ],
)
def test_whatever_a_template_raises_is_one_short_line(tokenizer: Any, template: str, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        written(tokenizer, template, "x" * 5_000_000)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


def test_limits_are_gone_afterwards(tokenizer: Any) -> None:
    import resource

    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    written(tokenizer, CHATML)
    assert (signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_beside_the_main_thread_memory_alone_is_bounded(tokenizer: Any) -> None:
    texts: list[str] = []

    def in_thread() -> None:
        texts.append(written(tokenizer, CHATML))
        with pytest.raises(EndlessError, match="1 GiB"):
            written(tokenizer, "{{ 'x' * 10 ** 11 }}")

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert texts == ["<|im_start|>user\nsend it<|im_end|>\n<|im_start|>assistant\n"]


@pytest.mark.parametrize(
    ("text", "rendered", "expected"),
    [
        ("send it", "<user>send it</user>", True),
        (" send it\n", "<user>send it</user>", True),
        ("send\n it", "<user>send it</user>", True),
        ('say "Größe"\n', '{"content": "say \\"Größe\\""}', True),
        ("Größe", '{"content": "Gr\\u00f6\\u00dfe"}', True),
        ("a < b & 'c'", "a &lt; b &amp; &#x27;c&#x27;", True),
        (" \n", "anything", True),
        ("send it", "<user>send</user>it", False),
        ("<think>no</think>yes", "yes", False),
    ],
)
def test_a_text_is_written_as_it_is_or_escaped_or_with_other_white_space(
    text: str, rendered: str, expected: bool
) -> None:
    assert is_written(text, rendered) is expected
