"""What is left of an answer once its reasoning is taken out."""

from typing import Any

import pytest

from tasks.data.encoding.tokens import Encoded
from tasks.data.reasoning import answer_text, references_without_reasoning, without_reasoning
from tasks.data.records import Prompt
from tasks.settings.base import Reasoning
from tests.conftest import make_tokenizer

THINK = Reasoning(start="<think>", end="</think>")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" no markers, spaces stay ", " no markers, spaces stay "),
        ("<think>\nhm\n</think>\n\nyes", "yes"),
        ("<think></think>yes", "yes"),
        ("<think>a</think>one <think>b\nc</think>two", "one two"),
        ("<think>a <think> b</think>yes", "yes"),
        ("hm</think>\nyes", "yes"),  # the template, or the source, has the start
        ("hm</think>yes <think>more</think>still", "yes still"),
        ("<think>cut by the lim", ""),
        ("yes <think>cut", ""),
        ("<think>a</think>yes<think>cut", ""),
        ("<think>only</think>", ""),
        ("", ""),
    ],
)
def test_what_is_left(text: str, left: str) -> None:
    assert without_reasoning(text, THINK) == left
    assert without_reasoning(text, None) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [("hm</think> yes", "yes"), ("cut by the lim", ""), ("", ""), ("<think>hm</think>yes", "yes")],
)
def test_an_answer_that_begins_within_the_reasoning(text: str, left: str) -> None:
    assert without_reasoning(text, THINK, opened=True) == left


def test_the_marks_are_text_not_a_pattern() -> None:
    markers = Reasoning(start="(*", end="*)")
    assert without_reasoning("(* a.b *)c", markers) == "c"
    assert without_reasoning("<think>a</think>c", markers) == "<think>a</think>c"


@pytest.mark.parametrize("special", [False, True])
def test_the_text_of_tokens_whatever_kind_of_tokens_the_marks_are(special: bool) -> None:
    tokenizer: Any = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    asked = ids("<|im_start|>user\nwhy <think> at all<|im_end|>\n<|im_start|>assistant\n")
    answer = ids("<think>send it</think>send the order<|im_end|>")
    assert answer_text(tokenizer, Encoded(asked, answer), THINK).split() == ["send", "the", "order"]
    assert answer_text(tokenizer, Encoded(asked, ids("<think>send it")), THINK) == ""
    assert answer_text(tokenizer, Encoded(asked, ids("send it")), THINK).split() == ["send", "it"]
    opened = asked + ids("<think>\n")
    assert answer_text(tokenizer, Encoded(opened, ids("send it</think>order")), THINK).split() == ["order"]
    assert answer_text(tokenizer, Encoded(opened, ids("send it")), THINK) == ""
    assert "send it" in answer_text(tokenizer, Encoded(opened, ids("send it")), None)


def test_references_lose_it_too_and_the_record_stays() -> None:
    prompt = Prompt("id", "train", "x", 1, [], ["<think>a</think>b", "c"])
    assert references_without_reasoning(prompt, THINK).references == ["b", "c"]
    assert prompt.references == ["<think>a</think>b", "c"]
