"""The text of an answer while its tokens come: whole characters, without stop strings, reasoning apart.

What is given at once and what is given piece by piece is the same text. White space at both ends is left out, as
`trueline chat` does.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.data.encoding.tokens import decode
from tasks.data.reasoning import TAIL, full_text
from tasks.settings.base import Reasoning

if TYPE_CHECKING:  # transformers costs seconds to import
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a character is decoded to while some of its bytes are to come


class Piece(NamedTuple):
    """What may be shown further of an answer."""

    content: str
    reasoning: str


class Decoder:
    """Turns token ids into text, with the marks of reasoning where a tokenizer has them as special tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", reasoning: Reasoning | None) -> None:
        """Look the marks up once: a tokenizer is slow to tell its vocabulary."""
        self._tokenizer, self.reasoning = tokenizer, reasoning
        self.marks = (reasoning.start, reasoning.end) if reasoning else ()
        special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_marks = {special[mark] for mark in self.marks if mark in special}

    def text(self, ids: Sequence[int]) -> str:
        """Give the text of ids without special tokens other than the marks."""
        if self._special_marks.isdisjoint(ids):
            return decode(self._tokenizer, ids)
        return full_text(self._tokenizer, ids, self.reasoning)

    def opens_reasoning(self, prompt: Sequence[int]) -> bool:
        """Tell whether a prompt ends within reasoning, so that the answer begins there."""
        return self.reasoning is not None and self.text(prompt[-TAIL:]).rstrip().endswith(self.reasoning.start)


class Splitter:
    """Splits a text that grows into what answers and what is reasoning, up to a stop string."""

    def __init__(self, marks: Sequence[str], stops: Sequence[str], *, is_reasoning: bool) -> None:
        """Begin with nothing.

        Args:
            marks: how reasoning begins and ends; none: there is no reasoning.
            stops: texts at the first of which the text ends, without it.
            is_reasoning: whether it begins within reasoning.
        """
        self._marks, self._stops = marks, [stop for stop in stops if stop]
        self._is_reasoning = is_reasoning
        self._done = 0  # characters of the text that have been given, or left out
        self._shown = {True: "", False: ""}  # reasoning and content that have been given
        self._space = {True: "", False: ""}  # white space that is given when something follows it
        self.whole = ""  # the text up to a stop string
        self.is_stopped = False

    def advance(self, text: str, *, is_end: bool) -> Piece:
        """Take the whole text so far, and give what is certain to be shown of it and was not given before."""
        if self.is_stopped:
            return Piece("", "")
        found = [place for stop in self._stops if (place := text.find(stop, self._done)) >= 0]
        if found:
            text, is_end, self.is_stopped = text[: min(found)], True, True
        certain = len(text)
        if not is_end:
            certain -= _begun(text[self._done :], [*self._stops, *self._marks])
        before = dict(self._shown)
        while self._done < certain:
            mark = self._marks[self._is_reasoning] if self._marks else None
            place = text.find(mark, self._done, certain) if mark else -1
            self._show(text[self._done : place if place >= 0 else certain])
            if mark is None or place < 0:
                self._done = certain
            else:
                self._done, self._is_reasoning = place + len(mark), not self._is_reasoning
        self.whole = text
        return Piece(self._shown[False][len(before[False]) :], self._shown[True][len(before[True]) :])

    def _show(self, text: str) -> None:
        shown, kind = self._shown, self._is_reasoning
        text = self._space[kind] + text
        text = text if shown[kind] else text.lstrip()
        visible = text.rstrip()
        self._space[kind] = text[len(visible) :]
        shown[kind] += visible


class AnswerText:
    """The text of one answer whose tokens come one by one."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int], stops: Sequence[str]) -> None:
        """Begin an answer to a prompt in ids, which ends at the first of some texts, without it."""
        self._decoder, self._ids = decoder, list[int]()
        self._splitter = Splitter(decoder.marks, stops, is_reasoning=decoder.opens_reasoning(prompt))

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._splitter.is_stopped

    @property
    def whole(self) -> str:
        """Content and reasoning as the model wrote them."""
        return self._splitter.whole

    def add(self, token: int) -> Piece:
        """Add a token; gives what is certain to be shown by now."""
        self._ids.append(token)
        text = self._decoder.text(self._ids)
        return Piece("", "") if text.endswith(UNFINISHED) else self._splitter.advance(text, is_end=False)

    def end(self) -> Piece:
        """End the answer; gives the rest."""
        return self._splitter.advance(self._decoder.text(self._ids), is_end=True)


def _begun(text: str, markers: Iterable[str]) -> int:
    """Count the characters at the end of a text with which one of the markers may begin."""
    return max(
        (
            size
            for marker in markers
            for size in range(1, min(len(marker), len(text) + 1))
            if text.endswith(marker[:size])
        ),
        default=0,
    )
