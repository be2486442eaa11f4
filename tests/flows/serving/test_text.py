"""The text of an answer in pieces is its text at once: whole characters, no stop string, reasoning apart."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.serving.text import AnswerText, Decoder, Piece, Splitter
from tasks.data.reasoning import without_reasoning
from tasks.settings.base import Reasoning
from tests.conftest import make_tokenizer

THINK = Reasoning(start="<think>", end="</think>")
MARKS = (THINK.start, THINK.end)


def split(parts: list[str], stops: tuple[str, ...] = (), *, is_reasoning: bool = False) -> tuple[list[Piece], Splitter]:
    """Give a text part by part, and then end it."""
    splitter, text, pieces = Splitter(MARKS, stops, is_reasoning=is_reasoning), "", []
    for part in parts:
        text += part
        pieces.append(splitter.advance(text, is_end=False))
    pieces.append(splitter.advance(text, is_end=True))
    return pieces, splitter


def joined(pieces: list[Piece]) -> tuple[str, str]:
    return "".join(piece.content for piece in pieces), "".join(piece.reasoning for piece in pieces)


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        (" plain text, spaces inside ", "plain text, spaces inside", ""),
        ("<think>\nhm\n</think>\n\nyes", "yes", "hm"),
        ("<think>a</think>one <think>b</think>two", "one two", "ab"),
        ("one <think>cut", "one", "cut"),
        ("a < b, <thin air", "a < b, <thin air", ""),
        ("", "", ""),
    ],
)
def test_reasoning_is_apart_however_the_text_is_cut(text: str, content: str, reasoning: str) -> None:
    for cut in range(len(text) + 1):
        pieces, splitter = split([text[:cut], *text[cut:]])
        assert joined(pieces) == (content, reasoning)
        assert splitter.whole == text
    assert without_reasoning(text, THINK).strip() in (content, "")  # where reasoning is cut, it gives nothing


def test_an_answer_that_begins_within_reasoning() -> None:
    pieces, _ = split(list("hm</think> yes"), is_reasoning=True)
    assert joined(pieces) == ("yes", "hm")


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", " ", "\n", "ab", "STOP", "ST"]), max_size=12))
def test_whatever_comes_pieces_and_whole_agree(parts: list[str]) -> None:
    text = "".join(parts)
    pieces, _ = split(parts, ("STOP",))
    at_once, splitter = split([text], ("STOP",))

    assert joined(pieces) == joined(at_once)
    assert splitter.whole == text.partition("STOP")[0]


def test_nothing_of_a_stop_string_is_shown() -> None:
    for text in ("one STOP two", "one STOPSTOP", "oneSTOP"):
        pieces, splitter = split(list(text), ("STOP", "two"))
        assert joined(pieces)[0] == "one"
        assert splitter.is_stopped
    pieces, splitter = split(list("one STO"), ("STOP",))
    assert (joined(pieces)[0], splitter.is_stopped) == ("one STO", False)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_become_whole_characters(special: bool) -> None:
    tokenizer: Any = make_tokenizer()
    tokenizer.add_tokens(list(MARKS), special_tokens=special)
    text = "<think>漢</think>Grüße 漢字 🎉 <|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoder = Decoder(tokenizer, THINK)
    answer = AnswerText(decoder, ids[:3], [])
    pieces = [*(answer.add(number) for number in ids), answer.end()]

    assert joined(pieces) == ("Grüße 漢字 🎉", "漢")
    assert not any("\ufffd" in part for piece in pieces for part in piece)
    shown = ["".join(piece.content for piece in pieces[:number]) for number in range(len(pieces))]
    assert all(after.startswith(before) for before, after in pairwise(shown))
    assert len(set(shown)) > 5
    assert decoder.opens_reasoning(tokenizer("x <think>\n", add_special_tokens=False)["input_ids"])
