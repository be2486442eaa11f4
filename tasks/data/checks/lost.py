"""What the chat template leaves out of a conversation: a system text, whole turns, thinking in earlier turns."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.data.encoding.rendering import RefusedError, is_written, rendering
from tasks.data.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# By check, in words: nothing is lost where none is named.
Losses = Mapping[str, str]
LOST_CHECKS = ("lost_system", "lost_turns", "lost_thinking")
THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>|^.*?</(think|thinking|reasoning)>", re.DOTALL)


class Reader:
    """Finds what a tokenizer's chat template leaves out."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Begin with no sequence of roles known."""
        self._tokenizer = tokenizer
        self._dropped: dict[tuple[str, ...], frozenset[int]] = {}

    def losses(self, prompt: Sequence[Message], written: str) -> Losses:
        """Name what a conversation has lost.

        Args:
            prompt: the conversation.
            written: the same in the chat template.
        """
        roles = tuple(message["role"] for message in prompt)
        if roles not in self._dropped:
            self._dropped[roles] = self._drops(roles)
        found: dict[str, str] = {}
        for number, message in enumerate(prompt):
            text = message["content"]
            if text.strip() and (number in self._dropped[roles] or not is_written(text, written)):
                check, what = _loss(message, number, is_written(THINKING.sub("", text), written))
                found.setdefault(check, f"the chat template leaves out {what}")
        return found

    def _drops(self, roles: tuple[str, ...]) -> frozenset[int]:
        """Turns whose text is not written, whatever it is: in a row its words may also stand elsewhere."""
        markers = [f"mark{number}of{len(roles)}" for number in range(len(roles))]
        messages = [Message(role=role, content=mark) for role, mark in zip(roles, markers, strict=True)]
        try:
            with rendering(self._tokenizer) as render:
                written = render(messages, generation_prompt=True)
        except RefusedError:  # for what the texts are: the row itself was written
            return frozenset()
        return frozenset(number for number, mark in enumerate(markers) if mark not in written)


def _loss(message: Message, number: int, keeps_the_rest: bool) -> tuple[str, str]:
    turn = f"turn {number + 1} ({message['role']})"
    if message["role"] in ("system", "developer"):
        return "lost_system", "the system text"
    if keeps_the_rest and THINKING.search(message["content"]):
        return "lost_thinking", f"the thinking in {turn}"
    return "lost_turns", f"{turn} or a part of it"
