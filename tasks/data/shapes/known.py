"""The shapes of rows that are taken: for each kind of records, sets of columns and the way to read them.

Faults are raised as `ShapeError`; the caller, which knows file and row, adds them.
"""

from collections.abc import Callable
from typing import NamedTuple

from tasks.data.records import PAIRS, Kind, Message
from tasks.data.shapes.columns import Fields
from tasks.data.shapes.conversations import (
    ASKING,
    Turn,
    answered_turns,
    answers_of,
    answers_to,
    as_answer,
    as_pair,
    as_prompt,
    with_system,
)
from tasks.data.shapes.labels import ANNOTATORS, LABEL_COLUMNS, compared, compared_by
from tasks.data.shapes.messages import as_messages, context_only
from tasks.data.shapes.ranked import ranked_answers, ranked_pairs
from tasks.data.shapes.statements import LABEL, RATING, as_number, is_desirable
from tasks.data.shapes.values import ShapeError, as_text
from tasks.data.tool_calls import answer_as_text


class Shape(NamedTuple):
    """The columns of a shape and how one row of it is read.

    Each entry that is read becomes a record. It has the fields that hold content, and may say of itself that it is
    `tied`, its `rating`, its `weight` and its `annotator`.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Fields], list[Fields]]
    are_apart: bool = False  # whether its entries stand for themselves, as pairs of a ranked list do


def _answered_prompt(fields: Fields) -> list[Fields]:
    return [_demonstration(turn) for turn in answers_to(_response(fields), _prompt(fields), "response")]


def _one_answer(fields: Fields) -> list[Fields]:
    return [_demonstration(as_answer(_response(fields), _prompt(fields), "response"))]


def _answered_conversation(fields: Fields) -> list[Fields]:
    return [_demonstration(turn) for turn in answers_of(*_conversation(fields))]


def _answered_instruction(fields: Fields) -> list[Fields]:
    return [_demonstration(Turn(_instruction(fields), as_text(fields["output"], "output")))]


def _demonstration(turn: Turn) -> Fields:
    return {"prompt": turn.prompt, "response": turn.response}


def _compared_answers(fields: Fields) -> list[Fields]:
    return [_preference(_prompt(fields), fields)]


def _compared_conversation(fields: Fields) -> list[Fields]:
    return [_preference(as_prompt(fields["conversations"], fields["system"]), fields)]


def _compared_instruction(fields: Fields) -> list[Fields]:
    return [_preference(_instruction(fields), fields)]


def _compared_wholes(fields: Fields) -> list[Fields]:
    found = as_pair(fields["chosen"], fields["rejected"])
    return [found._asdict() | {"prompt": with_system(found.prompt, fields["system"])}]


def _labelled(read: Callable[[Fields], list[Fields]]) -> Callable[[Fields], list[Fields]]:
    """Read two answers and a label as chosen and rejected; the entry of a tie says that it is one."""

    def labelled(fields: Fields) -> list[Fields]:
        ordered, chosen, tied = compared(fields)
        try:
            return [entry | ({"tied": True} if tied else {}) for entry in read(ordered)]
        except ShapeError as error:
            raise ShapeError(f"{error} (chosen is the column {chosen} here)") from None

    return labelled


def _preference(given: list[Message], fields: Fields) -> Fields:
    chosen, rejected = (as_answer(fields[name], given, name) for name in ("chosen", "rejected"))
    if chosen.prompt != rejected.prompt:
        raise ShapeError("chosen and rejected say different things before the prompt")
    return {"prompt": chosen.prompt, "chosen": chosen.response, "rejected": rejected.response}


def _ranked(prompt_of: Callable[[Fields], list[Message]]) -> Callable[[Fields], list[Fields]]:
    """Read several answers with ranks or scores as pairs."""

    def ranked(fields: Fields) -> list[Fields]:
        given = prompt_of(fields)
        return [pair | _preference(given, pair) for pair in ranked_pairs(ranked_answers(fields))]

    return ranked


def _each_rated(prompt_of: Callable[[Fields], list[Message]]) -> Callable[[Fields], list[Fields]]:
    """Read several answers with scores as ratings."""

    def each_rated(fields: Fields) -> list[Fields]:
        given = prompt_of(fields)
        ranked = ranked_answers(fields)
        if ranked[0].is_rank:
            raise ShapeError("ranks do not tell good answers from bad ones, as scores with a threshold do")
        return [_demonstration(as_answer(each.answer, given, "an answer")) | {RATING: each.score} for each in ranked]

    return each_rated


def _by_annotators(fields: Fields) -> list[Fields]:
    """Read two answers and a label of each of several annotators, a column each, as the rows that they would be."""
    entries = []
    for name in ANNOTATORS:
        if fields[name] is None:
            continue
        ordered, tied = compared_by(fields, name)
        [entry] = _compared_instruction(ordered)
        entries.append(entry | {"annotator": name} | ({"tied": True} if tied else {}))
    return entries


def _rated(read: Callable[[Fields], list[Fields]]) -> Callable[[Fields], list[Fields]]:
    """Read an answer with its label, or with its rating, a number; of a conversation the last answer is rated."""

    def rated(fields: Fields) -> list[Fields]:
        entry = read(fields)[-1]
        if LABEL in fields:
            return [entry | {"desirable": is_desirable(fields[LABEL])}]
        return [entry | {RATING: as_number(fields[RATING], RATING)}]

    return rated


def _last_answer(fields: Fields) -> list[Fields]:
    conversation, _ = _conversation(fields)
    if conversation[-1]["role"] != "assistant":
        last = conversation[-1]["role"]
        raise ShapeError(
            f"the conversation ends with the {last} where the assistant's answer, which is rated, is needed"
        )
    return [_demonstration(turn) for turn in answered_turns(conversation)][-1:]


def _both_rated(read: Callable[[Fields], list[Fields]]) -> Callable[[Fields], list[Fields]]:
    """Read a pair as two ratings: the chosen answer is a good one, the rejected one is not."""

    def both_rated(fields: Fields) -> list[Fields]:
        return [
            {name: value for name, value in pair.items() if name not in ("chosen", "rejected")}
            | {"response": pair[name], "desirable": name == "chosen"}
            for pair in read(fields)
            for name in ("chosen", "rejected")
        ]

    return both_rated


def _referenced_prompt(fields: Fields) -> list[Fields]:
    return [{"prompt": _prompt(fields), "references": _references(fields["references"])}]


def _prompt_of_demonstration(fields: Fields) -> list[Fields]:
    return [_with_reference(turn) for turn in answers_to(_response(fields), _prompt(fields), "response")]


def _prompt_alone(fields: Fields) -> list[Fields]:
    return [{"prompt": _prompt(fields), "references": []}]


def _prompts_of_conversation(fields: Fields) -> list[Fields]:
    conversation, context = _conversation(fields)
    found = [_with_reference(turn) for turn in answered_turns(conversation, context)]
    if conversation[-1]["role"] in ASKING:
        found.append({"prompt": conversation, "references": []})
    if not found:
        raise ShapeError("the conversation has no turn of the user to answer")
    return found


def _prompt_of_instruction(fields: Fields) -> list[Fields]:
    return [{"prompt": _instruction(fields), "references": _references(fields["output"])}]


def _prompt_of_compared(fields: Fields) -> list[Fields]:
    return [{"prompt": entry["prompt"], "references": []} for entry in _compared_wholes(fields)]


def _prompt_of_two(fields: Fields) -> list[Fields]:
    return _prompt_of_compared({**fields, "chosen": fields["conversation_a"], "rejected": fields["conversation_b"]})


def _with_reference(turn: Turn) -> Fields:
    return {"prompt": turn.prompt, "references": [] if turn.is_context else [answer_as_text(turn.response)]}


def _prompt(fields: Fields) -> list[Message]:
    return as_prompt(fields["prompt"], fields["system"])


def _response(fields: Fields) -> object:
    return fields["response"] if "response" in fields else fields["completion"]


def _conversation(fields: Fields) -> tuple[list[Message], list[int]]:
    """Give a conversation and the positions in it of what is not to be learned."""
    name = "messages" if "messages" in fields else "conversations"
    messages = as_messages(fields[name], name)
    whole = with_system(messages, fields["system"])
    return whole, [position + len(whole) - len(messages) for position in context_only(fields[name])]


def _instruction(fields: Fields) -> list[Message]:
    """Join an Alpaca row's instruction and input by an empty line, whatever they quote."""
    instruction = as_text(fields["instruction"], "instruction")
    given = "" if fields["input"] is None else as_text(fields["input"], "input")
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    return with_system([Message(role="user", content=asked)], fields["system"])


def _references(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [as_text(item, f"reference {number}") for number, item in enumerate(value, start=1)]
    return [as_text(value, "references")]


_LABELLED = ("system", "annotator", *LABEL_COLUMNS)
_ANSWERED = [
    Shape(("prompt", "response"), ("system", "annotator"), _one_answer),
    Shape(("prompt", "completion"), ("system", "annotator"), _one_answer),
    Shape(("messages",), ("system", "annotator"), _last_answer),
    Shape(("conversations",), ("system", "annotator"), _last_answer),
    Shape(("instruction", "output"), ("input", "system", "annotator"), _answered_instruction),
]
_COMPARED = [
    Shape(("prompt", "chosen", "rejected"), ("system", "annotator"), _compared_answers),
    Shape(("instruction", "chosen", "rejected"), ("input", "system", "annotator"), _compared_instruction),
    Shape(("conversations", "chosen", "rejected"), ("system", "annotator"), _compared_conversation),
    Shape(("chosen", "rejected"), ("system", "annotator"), _compared_wholes),
    Shape(("prompt", "response_a", "response_b"), _LABELLED, _labelled(_compared_answers)),
    Shape(("prompt", "output_1", "output_2"), _LABELLED, _labelled(_compared_answers)),
    Shape(("instruction", "response_a", "response_b"), ("input", *_LABELLED), _labelled(_compared_instruction)),
    Shape(("instruction", "output_1", "output_2"), ("input", *_LABELLED), _labelled(_compared_instruction)),
    Shape(("conversations", "response_a", "response_b"), _LABELLED, _labelled(_compared_conversation)),
    Shape(("conversation_a", "conversation_b"), _LABELLED, _labelled(_compared_wholes)),
]
_SEVERAL: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[Fields], list[Message]]]] = [
    (("prompt", "responses"), ("scores", "ranks", "system", "annotator"), _prompt),
    (("instruction", "completions"), ("input", "system", "annotator"), _instruction),  # UltraFeedback
    (("prompt", "completions"), ("system", "annotator"), _prompt),
    (("prompt", "answers"), ("system", "annotator"), _prompt),  # Nectar
]
_VOTED = Shape(  # PandaLM
    ("instruction", "response1", "response2", ANNOTATORS[0]),
    ("input", "system", "annotator", *ANNOTATORS[1:]),
    _by_annotators,
    are_apart=True,
)
_PAIRS = [
    *_COMPARED,
    *(Shape(required, optional, _ranked(of), are_apart=True) for required, optional, of in _SEVERAL),
    _VOTED,
]
SHAPES: dict[Kind, list[Shape]] = {
    "demonstrations": [
        Shape(("prompt", "response"), ("system", "annotator"), _answered_prompt),
        Shape(("prompt", "completion"), ("system", "annotator"), _answered_prompt),
        Shape(("messages",), ("system", "annotator"), _answered_conversation),
        Shape(("conversations",), ("system", "annotator"), _answered_conversation),
        Shape(("instruction", "output"), ("input", "system", "annotator"), _answered_instruction),
    ],
    **dict.fromkeys(PAIRS, _PAIRS),
    "ratings": [
        *(
            Shape((*each.required, column), each.optional, _rated(each.read))
            for column in (LABEL, RATING)
            for each in _ANSWERED
        ),
        *(each._replace(read=_both_rated(each.read)) for each in _COMPARED),
        *(Shape(required, optional, _each_rated(of), are_apart=True) for required, optional, of in _SEVERAL),
        _VOTED._replace(read=_both_rated(_VOTED.read)),
    ],
    "prompts": [
        Shape(("prompt", "references"), ("system", "category"), _referenced_prompt),
        Shape(("prompt", "response"), ("system", "category"), _prompt_of_demonstration),
        Shape(("prompt", "completion"), ("system", "category"), _prompt_of_demonstration),
        Shape(("prompt",), ("system", "category"), _prompt_alone),
        Shape(("messages",), ("system", "category"), _prompts_of_conversation),
        Shape(("instruction",), ("input", "output", "system", "category"), _prompt_of_instruction),
        Shape(("conversations",), ("system", "category"), _prompts_of_conversation),
        Shape(("chosen", "rejected"), ("system", "category"), _prompt_of_compared),
        Shape(("conversation_a", "conversation_b"), ("system", "category"), _prompt_of_two),
    ],
}
