"""Prompts, answers, turns and pairs in conversations.

Faults are raised as `ShapeError`; the caller, which knows file and row, adds them.
"""

from collections.abc import Collection, Iterator
from itertools import takewhile
from typing import NamedTuple

from tasks.data.records import Answer, Message
from tasks.data.shapes.messages import as_messages, context_only, is_plain
from tasks.data.shapes.tools import TOOLS
from tasks.data.shapes.values import ShapeError, as_text


class Turn(NamedTuple):
    """An answer and all messages before it."""

    prompt: list[Message]  # ends with the user's turn, or the result of a tool
    response: Answer
    is_context: bool = False  # it is part of the conversation, but not to be learned


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: list[Message]  # ends with the user's turn, or the result of a tool
    chosen: Answer
    rejected: Answer


# Who is answered.
ASKING = ("user", "tool")
LAST_ALONE = (
    "of answers with several messages, such as a call, its result and what follows, only the last may differ: put what "
    "comes before it into the prompt"
)


def as_prompt(value: object, system: object = None) -> list[Message]:
    """Read a prompt: a text, which the user says, a message or a conversation that ends with the user or a tool.

    A non-empty `system` text is put before it.

    Raises:
        ShapeError: it is something else, or the assistant or a system message comes last.
    """
    if is_plain(value):
        messages = [Message(role="user", content=as_text(value, "prompt"))]
    else:
        messages = as_messages([value] if isinstance(value, dict) else value, "prompt")
    # "\n\nAssistant:" at the end of a text only asks for the answer.
    if isinstance(value, str) and messages[-1]["role"] == "assistant" and messages.pop()["content"]:
        raise ShapeError(
            "prompt ends with the assistant where the user must speak last (a prompt that quotes a dialogue goes into "
            "one message, {role: user, content})"
        )
    return with_system(_ending_with_question(messages, "prompt"), system)


def with_system(conversation: list[Message], system: object) -> list[Message]:
    """Put a system message first, where `system` holds a text.

    Raises:
        ShapeError: `system` is neither a text nor null, or the conversation has another system message already.
    """
    if system is None or as_text(system, "system") == "":
        return conversation
    message = Message(role="system", content=as_text(system, "system"))
    if conversation[0]["role"] != "system":
        return [message, *conversation]
    if conversation[0] != message:
        raise ShapeError("system and the first message are two different system messages where one is needed")
    return conversation


def answered_turns(conversation: list[Message], context: Collection[int] = ()) -> Iterator[Turn]:
    """Give every assistant turn that answers the user or a tool, each with all messages before it.

    An assistant turn that answers nobody (a greeting, a second turn in a row) is only part of the history.

    Args:
        conversation: all messages.
        context: the positions from 0 of messages that are not to be learned.
    """
    for position in range(1, len(conversation)):
        if conversation[position]["role"] == "assistant" and conversation[position - 1]["role"] in ASKING:
            yield Turn(conversation[:position], _said(conversation[position]), position in context)


def answers_to(value: object, given: list[Message], name: str) -> list[Turn]:
    """Read what the assistant says to a given prompt: one answer, or several messages with the results of its calls.

    Each message of the assistant is a turn, with all before it as its prompt.

    Raises:
        ShapeError: it is something else, or nothing of it is to be learned.
    """
    if isinstance(value, list) and len(value) > 1:
        messages = as_messages(value, name)
        roles = {message["role"] for message in messages}
        if messages[0]["role"] == messages[-1]["role"] == "assistant" and roles == {"assistant", "tool"}:
            context = [position + len(given) for position in context_only(value)]
            turns = [turn for turn in answered_turns([*given, *messages], context) if len(turn.prompt) >= len(given)]
            return _to_be_learned(turns, name)
    return [as_answer(value, given, name)]


def answers_of(conversation: list[Message], context: Collection[int]) -> list[Turn]:
    """Give the answers of a whole conversation that are to be learned.

    Raises:
        ShapeError: there is none.
    """
    turns = list(answered_turns(conversation, context))
    if not turns:
        raise ShapeError("the conversation has no answer of the assistant to the user")
    return _to_be_learned(turns, "the conversation")


def _to_be_learned(turns: list[Turn], name: str) -> list[Turn]:
    learned = [turn for turn in turns if not turn.is_context]
    if not learned:
        raise ShapeError(f"none of {name}'s answers is to be learned, by their weight or train")
    return learned


def _said(message: Message) -> Answer:
    """Give what a message of the assistant says: its text, or the message where it has calls."""
    return message if "tool_calls" in message else message["content"]


def as_answer(value: object, given: list[Message], name: str) -> Turn:
    """Read an answer to a given prompt: a text, an assistant's message, or a conversation that repeats the prompt.

    Where a whole conversation says more before the prompt (a system message, say), its own history is the prompt. A
    text with "Human:" and "Assistant:" turns is a conversation only where it repeats the prompt: otherwise it is an
    answer that quotes one.

    Raises:
        ShapeError: it is something else, does not end with the assistant, is not to be learned, or does not repeat
            the prompt.
    """
    if is_plain(value):
        return Turn(given, as_text(value, name))
    messages = as_messages([value] if isinstance(value, dict) else value, name)
    history, last = messages[:-1], messages[-1]
    if isinstance(value, str) and not (history and last["role"] == "assistant" and _goes_on(history, given)):
        return Turn(given, as_text(value, name))
    if last["role"] != "assistant":
        raise ShapeError(f"{name} ends with the {last['role']} where the assistant's answer is needed")
    if any("tool_calls" in message for message in history) and not _goes_on(history, given):
        raise ShapeError(f"{name} has {len(messages)} messages that do not repeat the prompt ({LAST_ALONE})")
    if history and not _goes_on(history, given):
        raise ShapeError(
            f"{name} is a conversation that does not go on from the prompt (an answer that quotes one goes into one "
            "message, {role: assistant, content})"
        )
    if len(messages) - 1 in context_only(value):
        raise ShapeError(f"{name} is an answer that is not to be learned, by its weight or train")
    if TOOLS in last:
        raise ShapeError(f"{name} has {TOOLS} in the answer where the conversation's first message has them")
    return Turn(max(given, history, key=_size), _said(last))


def _size(conversation: list[Message]) -> tuple[int, bool]:
    """Tell which of two that repeat each other has more: messages, or of as many the functions that may be called."""
    return len(conversation), any(TOOLS in message for message in conversation)


def _goes_on(history: list[Message], given: list[Message]) -> bool:
    """Tell whether one repeats the other or its end, white space around the texts aside."""
    ours, theirs = (
        [(each["role"], each["content"].strip(), each.get("tool_calls")) for each in messages]
        for messages in (history, given)
    )
    return ours[-len(theirs) :] == theirs or theirs[-len(ours) :] == ours


def as_pair(chosen: object, rejected: object) -> Pair:
    """Find the prompt that two whole conversations, or two whole texts, begin with.

    Raises:
        ShapeError: they are of different kinds, share no prompt, or differ before their last turn.
    """
    wholes = {"chosen": chosen, "rejected": rejected}
    conversations = [as_messages(value, name) for name, value in wholes.items() if not is_plain(value)]
    if not conversations:
        return _plain_pair(as_text(chosen, "chosen"), as_text(rejected, "rejected"))
    if len(conversations) == 1:
        raise ShapeError("one of chosen and rejected is a conversation and the other a plain text")
    ours, theirs = conversations
    if len(ours) != len(theirs) or ours[:-1] != theirs[:-1]:
        if any("tool_calls" in message for message in (*ours[:-1], *theirs[:-1])):
            raise ShapeError(f"chosen and rejected differ before their last message ({LAST_ALONE})")
        raise ShapeError(
            "chosen and rejected differ before their last turn where they must share the prompt (where an answer "
            "quotes a dialogue, give the prompt in a column of its own)"
        )
    shared = _ending_with_question(ours[:-1], "the part that chosen and rejected share")
    return Pair(
        shared, as_answer(ours[-1], shared, "chosen").response, as_answer(theirs[-1], shared, "rejected").response
    )


def _plain_pair(chosen: str, rejected: str) -> Pair:
    """Cut after the last whole line, or else the last whole word, of the common beginning.

    Answers often begin alike, so that the first difference lies inside them.
    """
    alike = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    beginning = chosen[: sum(1 for _ in alike)]
    cut = beginning.rfind("\n") + 1 or beginning.rfind(" ") + 1
    shared = beginning[:cut].rstrip()
    if not shared:
        raise ShapeError("chosen and rejected share no beginning that could be the prompt (map the column prompt)")
    return Pair([Message(role="user", content=shared)], chosen[cut:], rejected[cut:])


def _ending_with_question(conversation: list[Message], name: str) -> list[Message]:
    if not conversation or conversation[-1]["role"] not in ASKING:
        last = f"ends with the {conversation[-1]['role']}" if conversation else "is empty"
        raise ShapeError(f"{name} {last} where the user must speak last")
    return conversation
