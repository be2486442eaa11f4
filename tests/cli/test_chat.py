"""trueline chat."""

import sys
from pathlib import Path
from typing import Any

import pytest

from flows import chat as chat_module
from tasks.common.errors import InputError
from tests.cli.conftest import returning


class Parrot:
    """Stands in for a conversation with a model."""

    messages: list[Any]

    def ask(self, text: str) -> str:
        if text == "long":
            raise InputError("the conversation is longer than the context")
        return text.upper()


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "begin", returning(Parrot()))
    Path("models/sft").mkdir(parents=True)


def test_one_message(trueline, parrot: None) -> None:
    assert trueline("chat", "--stage", "sft", "hello") == (0, "HELLO\n", "")


def test_piped_messages(trueline, parrot: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nagain\n/exit\nunheard\n"))

    assert trueline("chat", "--stage", "sft") == (0, "HELLO\nAGAIN\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stage", "sft", "long"], "the conversation is longer than the context"),
        (["--stage", "reward", "hello"], "reward has no model to talk to: choose one of base, sft, dpo, kto, ppo"),
        (["--stage", "ppo", "hello"], "models/ppo does not exist"),
        (["--stage", "sft", "--version", "3", "hello"], "--stage and --version name two models"),
    ],
)
def test_chat_that_cannot_be(trueline, parrot: None, arguments: list[str], sentence: str) -> None:
    code, out, err = trueline("chat", *arguments)

    assert (code, out) == (2, "")
    assert sentence in err
