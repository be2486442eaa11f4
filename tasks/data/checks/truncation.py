"""Rows longer than the limit, cut to it before they are checked, so that every stage reads the same."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress, islice, takewhile
from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError
from tasks.data.checks.schema import inspect
from tasks.data.encoding.tokens import RECORDS_AT_ONCE, Parts, Text, as_text, encode_texts
from tasks.data.records import ANSWERS, Kind, Message
from tasks.settings.choices import Truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts are cut between these: words, and where there are no spaces, or hardly any, a few characters.
_PIECE = re.compile(r"\S{1,20}")
_INSTRUCTIONS = ("system", "developer")
Row = Mapping[str, Any]


def truncated(
    kind: Kind, rows: Iterable[Row], tokenizer: "PreTrainedTokenizerBase", how: Truncate, limit: int
) -> Iterator[Row]:
    """Cut rows that are longer than `limit` tokens in the chat template; `truncated` in them says what they lost.

    `prompt_start` leaves out whole earlier turns, the oldest first and never the system's, so that the conversation
    begins with the user; then the start of the user's last message. The functions that may be called stay. The two
    answers of a pair keep one prompt. `answer_end` cuts each answer by itself, but never a call. Prompts have no answer
    and lose their start with either. Rows that cannot be cut to the limit in this way, or are not sound, stay as they
    are.
    """
    waiting = iter(rows)
    while some := list(islice(waiting, RECORDS_AT_ONCE)):
        is_sound = [not inspect(kind, row).fault for row in some]
        encoded = iter(encode_texts(tokenizer, [as_text(kind, row) for row in compress(some, is_sound)]))
        for row, sound in zip(some, is_sound, strict=True):
            parts = next(encoded) if sound else None
            is_long = isinstance(parts, list) and _longest(parts) > limit
            yield _Cutter(kind, row, tokenizer, limit).cut(how) if is_long else row


class _Cutter:
    """Cuts one row."""

    def __init__(self, kind: Kind, row: Row, tokenizer: "PreTrainedTokenizerBase", limit: int) -> None:
        self._row, self._names, self._text = row, ANSWERS[kind], as_text(kind, row)
        self._tokenizer, self._limit = tokenizer, limit

    def cut(self, how: Truncate) -> Row:
        return self._without_ends() if how == "answer_end" and self._names else self._without_start()

    def _without_start(self) -> Row:
        prompt = self._text.prompt
        turns = _starts(prompt)
        place = self._first(turns, lambda start: self._text._replace(prompt=_from_turn(prompt, start)))
        if place is not None:
            return self._with_prompt(_from_turn(prompt, place))
        shortest = _from_turn(prompt, turns[-1] if turns else _instructions(prompt))
        words = _words(shortest) if _asks(shortest) else []
        place = self._first(words, lambda start: self._text._replace(prompt=_from_word(shortest, start)))
        return self._row if place is None else self._with_prompt(_from_word(shortest, place))

    def _with_prompt(self, prompt: list[Message]) -> Row:
        lost = len(self._encoded(self._text)[0]) - len(self._encoded(self._text._replace(prompt=prompt))[0])
        return {**self._row, "prompt": prompt, "truncated": {"prompt": lost}}

    def _without_ends(self) -> Row:
        answers: dict[str, str] = {}
        lost: dict[str, int] = {}
        for name in self._names:
            text = self._row[name]
            whole = self._encoded(Text(self._text.prompt, [text]))
            if _longest(whole) <= self._limit:
                continue
            if not isinstance(text, str):
                return self._row
            ends = [piece.end() for piece in _PIECE.finditer(text)][-2::-1]
            place = self._first(ends, partial(self._ending, text))
            if place is None:
                return self._row
            answers[name] = text[:place]
            lost[name] = len(whole[1]) - len(self._encoded(self._ending(text, place))[1])
        return {**self._row, **answers, "truncated": lost}

    def _ending(self, answer: str, end: int) -> Text:
        return Text(self._text.prompt, [answer[:end]], cut=(0,))

    def _first(self, places: Sequence[int], shortened: Callable[[int], Text]) -> int | None:
        """The first of the places, of which each leaves less of the row, that leaves no more than the limit."""

        def fits(place: int) -> bool:
            [parts] = encode_texts(self._tokenizer, [shortened(place)])
            return not isinstance(parts, InputError) and _longest(parts) <= self._limit

        found = bisect_left(places, True, key=fits)
        return places[found] if found < len(places) else None

    def _encoded(self, text: Text) -> Parts:
        [parts] = encode_texts(self._tokenizer, [text])
        assert not isinstance(parts, InputError)  # it has been encoded before
        return parts


def _starts(prompt: Sequence[Message]) -> list[int]:
    """Places of the user's turns at which a shorter conversation may start: all but the first turn of all."""
    first = _instructions(prompt)
    return [place for place, turn in enumerate(prompt) if turn["role"] == "user" and place > first]


def _from_turn(prompt: Sequence[Message], start: int) -> list[Message]:
    first, *others = [*prompt[: _instructions(prompt)], *prompt[start:]]
    if "tools" in prompt[0]:
        first = {**first, "tools": prompt[0]["tools"]}
    return [first, *others]


def _words(prompt: Sequence[Message]) -> list[int]:
    """Places at which the user's last message may start, in it."""
    return [piece.start() for piece in _PIECE.finditer(prompt[_last_asked(prompt)]["content"])][1:]


def _from_word(prompt: Sequence[Message], start: int) -> list[Message]:
    asked = _last_asked(prompt)
    shorter: Message = {**prompt[asked], "content": prompt[asked]["content"][start:]}
    return [*prompt[:asked], shorter, *prompt[asked + 1 :]]


def _asks(prompt: Sequence[Message]) -> bool:
    """Whether the user says anything: a conversation may consist of calls and results alone."""
    return any(turn["role"] == "user" for turn in prompt)


def _last_asked(prompt: Sequence[Message]) -> int:
    return max(place for place, turn in enumerate(prompt) if turn["role"] == "user")


def _instructions(prompt: Sequence[Message]) -> int:
    """How many turns of the system a conversation begins with; they are kept."""
    return sum(1 for _ in takewhile(lambda turn: turn["role"] in _INSTRUCTIONS, prompt))


def _longest(parts: Parts) -> int:
    prompt, *answers = parts
    return len(prompt) + max(map(len, answers), default=0)
