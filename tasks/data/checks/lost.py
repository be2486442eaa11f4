"""What the chat template leaves out: a system text, whole turns, thinking in earlier turns, tools and their calls."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from tasks.data.encoding.rendering import RefusedError, is_number_written, is_written, rendering
from tasks.data.records import Answer, Function, Message, ToolCall
from tasks.data.tool_calls import as_answer_message, values_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# By check, in words: nothing is lost where none is named.
Losses = Mapping[str, str]
LOST_CHECKS = ("lost_system", "lost_turns", "lost_thinking", "lost_tools")
THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>|^.*?</(think|thinking|reasoning)>", re.DOTALL)
CURE = "choose one that writes it (base.chat_template)"
CALL_ID = "call00001"  # nine letters and digits, as Mistral's templates want it

TOOLS_MARK = "tools"
CALL_WORDS = ("function", "argument", "value")
TOOL_WORDS = ("toolname", "tooldescription", "toolparameter")


class Turn(NamedTuple):
    """A message without its words."""

    role: str
    is_blank: bool  # of a message with calls: it says nothing beside
    calls: int
    has_tools: bool


class Reader:
    """Finds what a tokenizer's chat template leaves out."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Begin with no sequence of turns known."""
        self._tokenizer = tokenizer
        self._dropped: dict[tuple[Turn, ...], frozenset[str]] = {}

    def losses(self, prompt: Sequence[Message], written: str, answers: Iterable[tuple[Answer, str]] = ()) -> Losses:
        """Name what a conversation has lost.

        Args:
            prompt: the conversation.
            written: the same in the chat template.
            answers: each answer to it, and the conversation with it in the chat template.
        """
        found: dict[str, str] = {}
        dropped = self._drops(prompt, is_answered=False)
        for number, message in enumerate(prompt):
            text = message["content"]
            if text.strip() and (_mark(number) in dropped or not is_written(text, written)):
                check, what = _loss(message, number, is_written(THINKING.sub("", text), written))
                found.setdefault(check, f"the chat template leaves out {what}")
        lost = [*_lost_tools(prompt, written, dropped), *self._lost_calls(prompt, answers)]
        if lost:
            found.setdefault("lost_tools", f"the chat template leaves out {lost[0]}: {CURE}")
        return found

    def _lost_calls(self, prompt: Sequence[Message], answers: Iterable[tuple[Answer, str]]) -> Iterator[str]:
        for answer, written in answers:
            if not isinstance(answer, str):
                number, dropped = len(prompt), self._drops([*prompt, as_answer_message(answer)], is_answered=True)
                if _call_mark(number) in dropped or not _are_written(answer["tool_calls"], written):
                    yield "the call in the answer"
                elif answer["content"].strip() and _mark(number) in dropped:
                    yield "what the answer says beside its call"

    def _drops(self, messages: Sequence[Message], *, is_answered: bool) -> frozenset[str]:
        """Marks of what is not written, whatever it is: in a row its words may also stand elsewhere."""
        turns = tuple(map(_turn, messages))
        if turns not in self._dropped:
            probe, marks = _probe(turns)
            try:
                with rendering(self._tokenizer) as render:
                    written = render(probe, generation_prompt=not is_answered)
            except RefusedError:  # for what the texts are: the row itself was written
                written, marks = "", {}
            self._dropped[turns] = frozenset(
                mark for mark, words in marks.items() if any(word not in written for word in words)
            )
        return self._dropped[turns]


def _mark(number: int) -> str:
    return f"mark{number}of"


def _call_mark(number: int) -> str:
    return f"call{number}of"


def _turn(message: Message) -> Turn:
    calls = len(message.get("tool_calls", ()))
    return Turn(message["role"], calls > 0 and not message["content"].strip(), calls, "tools" in message)


def _probe(turns: Sequence[Turn]) -> tuple[list[Message], dict[str, list[str]]]:
    """A conversation of marks in the place of words, and by mark the words that must be written."""
    messages: list[Message] = []
    marks: dict[str, list[str]] = {}
    for number, turn in enumerate(turns):
        text = "" if turn.is_blank else f"{_mark(number)}{len(turns)}"
        message = Message(role=turn.role, content=text)
        marks[_mark(number)] = [text]
        if turn.calls:
            calls = [[f"{word}{number}of{place}x" for word in CALL_WORDS] for place in range(turn.calls)]
            message["tool_calls"] = [_call(*words) for words in calls]
            marks[_call_mark(number)] = list(chain.from_iterable(calls))
        if turn.role == "tool":
            message |= {"name": "function", "tool_call_id": CALL_ID}
        if turn.has_tools:
            name, description, parameter = TOOL_WORDS
            parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
            function = {"name": name, "description": description, "parameters": parameters}
            message["tools"] = [{"type": "function", "function": function}]
            marks[TOOLS_MARK] = [*TOOL_WORDS]
        messages.append(message)
    return messages, marks


def _call(name: str, argument: str, value: str) -> ToolCall:
    return ToolCall(id=CALL_ID, type="function", function=Function(name=name, arguments={argument: value}))


def _lost_tools(prompt: Sequence[Message], written: str, dropped: frozenset[str]) -> Iterator[str]:
    names = [tool["function"]["name"] for tool in prompt[0].get("tools", ())]
    if names and (TOOLS_MARK in dropped or not all(is_written(name, written) for name in names)):
        yield "the tools"
    for number, message in enumerate(prompt):
        calls = message.get("tool_calls", ())
        if calls and (_call_mark(number) in dropped or not _are_written(calls, written)):
            yield f"the call in turn {number + 1}"


def _are_written(calls: Iterable[ToolCall], written: str) -> bool:
    functions = [call["function"] for call in calls]
    values = (value for each in functions for value in (each["name"], *values_of(each["arguments"])))
    return all(
        is_written(value, written) if isinstance(value, str) else is_number_written(value, written) for value in values
    )


def _loss(message: Message, number: int, keeps_the_rest: bool) -> tuple[str, str]:
    turn = f"turn {number + 1} ({message['role']})"
    if message["role"] in ("system", "developer"):
        return "lost_system", "the system text"
    if message["role"] == "tool":
        return "lost_tools", f"the result in turn {number + 1}: {CURE}"
    if keeps_the_rest and THINKING.search(message["content"]):
        return "lost_thinking", f"the thinking in {turn}"
    return "lost_turns", f"{turn} or a part of it"
