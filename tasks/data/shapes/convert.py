"""Rows of many shapes to the fields of the canonical records.

A shape is a set of columns and the way to read them. It is recognised once, from the columns of the first row, after
the column map has renamed them; `SHAPES` lists every shape that is taken, in order of preference.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tasks.common.errors import InputError, quoted
from tasks.data.names import WHOLE_NUMBER, as_name
from tasks.data.records import TAGS, Kind, Message, Vote
from tasks.data.shapes.columns import (
    Fields,
    Tally,
    check_ignored,
    count_unused,
    extra_columns,
    extra_of,
    opened,
    rename,
)
from tasks.data.shapes.conversations import Turn, answered_turns, as_answer, as_pair, as_prompt, with_system
from tasks.data.shapes.labels import LABEL_COLUMNS, compared
from tasks.data.shapes.messages import (
    IgnorableError,
    ShapeError,
    as_messages,
    as_text,
    context_only,
    is_nothing,
    listed,
)
from tasks.data.shapes.statements import (
    LABEL,
    RATING,
    STATEMENTS,
    Left,
    as_rating,
    is_bad,
    is_desirable,
    is_read,
    reason_to_leave_out,
)
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import RatingSource, Source

LONGEST_TAG = 100  # characters: a longer one is no name, but a column taken for another


class Shape(NamedTuple):
    """The columns of a shape and how one row of it is read."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Fields], list[Fields]]


class ShapedRow(NamedTuple):
    """A row of a source, and what became of it: one entry, or one for every answer of a conversation.

    The entries have the fields of the kind's record that hold content: a prompt and its response, its chosen and
    rejected answers, or its references.
    """

    source: str  # as outputs name it
    row: int
    entries: list[Fields]
    tag: str | None = None  # of all its entries: their annotator, or category
    tied: bool = False  # the annotator preferred neither answer; chosen and rejected stand as the row has the two
    left: Left | None = None  # why it is left out, by what it says about itself
    votes: list[Vote] | None = None  # of the rows that it stands for (votes.py)
    columns: Fields = {}  # noqa: RUF012 - extra ones, of all its entries; nobody changes a row


def shape_rows(
    rows: Iterable[RawRow], kind: Kind, source: Source, name: str, *, bad: BadRows, tally: Tally
) -> Iterator[ShapedRow]:
    """Read the rows of a file, of any known shape, as rows of one kind; outputs know the file by `name`.

    Args:
        rows: as the file has them.
        kind: of the records that they are to become.
        source: the file, with its column map and what it ignores.
        name: the file's in outputs.
        bad: those of its rows that cannot be read; they are reported at the end of the file.
        tally: what is not read of the others.

    Raises:
        InputError: the columns fit no shape, the column map is wrong, or rows were bad.
    """
    shape: Shape | None = None
    better: list[set[str]] = []
    for row, fields in rows:
        if shape is None:
            shape = recognise(fields, kind, source)
            better = _better_columns(shape, kind, source)
        try:
            _check_same_shape(fields, shape, better, source)
            shaped = _shaped(fields, shape, kind, source, tally)._replace(source=name, row=row)
        except ShapeError as error:
            way_out = f" (to leave it out, name it in prepare.{kind}.ignore in params.yaml)"
            bad.add(row, f": {error}{way_out if isinstance(error, IgnorableError) else ''}")
            continue
        yield shaped
    bad.stop()


def _shaped(fields: Fields, shape: Shape, kind: Kind, source: Source, tally: Tally) -> ShapedRow:
    """Read one row; whose it is, the caller knows."""
    whole = opened(fields, source, tally)
    named = _of_shape(whole, shape, source.columns)
    entries = [_by_threshold(entry, source) for entry in shape.read(named)]
    tied = True in {entry.pop("tied", False) for entry in entries}
    # A column that rewards are given, and that no field of ours is read from, says nothing about the row.
    extra = {*extra_of(source).values()}.difference(source.columns.values())
    statements = {name: value for name, value in whole.items() if name not in {*extra, *shape.required}}
    left = reason_to_leave_out(statements, kind)
    if kind == "prompts" and is_bad(statements):  # it is no reference, but the prompt is one all the same
        entries = [entry | {"references": []} for entry in entries]
    read = {*shape.required, *shape.optional, *(name for name in statements if is_read(name, kind))}
    count_unused(fields, read, source, tally)
    tag, columns = _tag(named[TAGS[kind]], TAGS[kind]), extra_columns(fields, source)
    return ShapedRow("", 0, entries, tag, tied, left, columns=columns)


def recognise(fields: Mapping[str, Any], kind: Kind, source: Source) -> Shape:
    """Find the shape of a file from the columns of its first row and the column map (our field: their column).

    Raises:
        InputError: the map has an unknown field or column, or the columns fit no shape of this kind.
    """
    _check_map(fields, kind, source)
    columns = set(rename(fields, source.columns)) - set(source.ignore)
    for shape in SHAPES[kind]:
        known = {*shape.required, *shape.optional, *STATEMENTS}
        if columns.issuperset(shape.required) and known.issuperset(source.columns):
            return shape
    left = [name for name in fields if name not in source.ignore]
    needed = " or ".join(f"({_listed(shape.required)})" for shape in SHAPES[kind])
    raise InputError(
        f"{source.source} has the columns {listed(left) or '(none)'}, but {kind} need {needed}: "
        f"name yours under prepare.{kind}.columns in params.yaml, as in {SHAPES[kind][0].required[0]}: <your column>"
    )


def _check_map(fields: Mapping[str, Any], kind: Kind, source: Source) -> None:
    setting = f"prepare.{kind}.columns"
    check_ignored(source, f"prepare.{kind}")
    known = list(dict.fromkeys(name for shape in SHAPES[kind] for name in (*shape.required, *shape.optional)))
    known += STATEMENTS
    for ours in source.columns:
        if ours not in known:
            raise InputError(
                f"{setting} in params.yaml maps {quoted(ours)}, but {kind} only have {_listed(known)}: fix it"
            )
    for key, columns in {"columns": source.columns, "extra_columns": extra_of(source)}.items():
        for ours, theirs in columns.items():
            if theirs not in fields:
                raise InputError(
                    f"prepare.{kind}.{key} in params.yaml maps {ours} to {theirs!r}, but the columns of "
                    f"{source.source} are {listed(fields) or '(none)'}: name one of them"
                )


def _better_columns(shape: Shape, kind: Kind, source: Source) -> list[set[str]]:
    """Give the columns, as the file names them, of each shape that would have been taken before this one."""
    before = SHAPES[kind][: SHAPES[kind].index(shape)]
    candidates = [each for each in before if {*each.required, *each.optional, *STATEMENTS}.issuperset(source.columns)]
    named = [{source.columns.get(name, name) for name in each.required} for each in candidates]
    return [names for names in named if names.isdisjoint(source.ignore)]


def _check_same_shape(fields: Fields, shape: Shape, better: Iterable[set[str]], source: Source) -> None:
    """Refuse a row that has more than the first one had: what it has besides would not be read."""
    for names in better:
        if fields.keys() >= names:
            known = {source.columns.get(name, name) for name in shape.required}
            more = sorted(name for name in names - known if not is_nothing(fields[name]))
            if more:
                raise ShapeError(
                    f"it has {_listed(more)}, which the first row has not (give all rows the same columns, with null "
                    "where there is nothing)"
                )


def _of_shape(named: Fields, shape: Shape, columns: Mapping[str, str]) -> Fields:
    """Give the columns of the shape only, with null where an optional one is absent."""
    for name in shape.required:
        if name not in named:
            raise ShapeError(f"the column {columns.get(name, name)} is missing")
    return {name: named.get(name) for name in (*shape.required, *shape.optional)}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"


def _answered_prompt(fields: Fields) -> list[Fields]:
    return [_demonstration(as_answer(_response(fields), _prompt(fields), "response"))]


def _answered_conversation(fields: Fields) -> list[Fields]:
    answered = list(answered_turns(*_conversation(fields)))
    if not answered:
        raise ShapeError("the conversation has no answer of the assistant to the user")
    learned = [_demonstration(turn) for turn in answered if not turn.is_context]
    if not learned:
        raise ShapeError("none of the conversation's answers is to be learned, by their weight or train")
    return learned


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


def _rated(read: Callable[[Fields], list[Fields]]) -> Callable[[Fields], list[Fields]]:
    """Read an answer with its label, or with its rating, a number; of a conversation the last answer is rated."""

    def rated(fields: Fields) -> list[Fields]:
        entry = read(fields)[-1]
        if LABEL in fields:
            return [entry | {"desirable": is_desirable(fields[LABEL])}]
        return [entry | {RATING: as_rating(fields[RATING])}]

    return rated


def _last_answer(fields: Fields) -> list[Fields]:
    conversation, _ = _conversation(fields)
    if conversation[-1]["role"] != "assistant":
        raise ShapeError("the conversation ends with the user where the assistant's answer, which is rated, is needed")
    return [_demonstration(turn) for turn in answered_turns(conversation)][-1:]


def _both_rated(read: Callable[[Fields], list[Fields]]) -> Callable[[Fields], list[Fields]]:
    """Read a pair as two ratings: the chosen answer is a good one, the rejected one is not."""

    def both_rated(fields: Fields) -> list[Fields]:
        [pair] = read(fields)
        tied = {"tied": True} if "tied" in pair else {}
        return [
            {"prompt": pair["prompt"], "response": pair[name], "desirable": name == "chosen", **tied}
            for name in ("chosen", "rejected")
        ]

    return both_rated


def _by_threshold(entry: Fields, source: Source) -> Fields:
    """Turn a rating into good or bad; one at the threshold is neither.

    Raises:
        InputError: there is no threshold.
    """
    if RATING not in entry:
        return entry
    rating = entry.pop(RATING)
    threshold = source.threshold if isinstance(source, RatingSource) else None
    if threshold is None:
        raise InputError(
            f"{source.source} rates answers by numbers: set prepare.ratings.threshold in params.yaml, above which an "
            "answer is good and below which it is bad"
        )
    return entry | {"desirable": rating > threshold} | ({"tied": True} if rating == threshold else {})


def _referenced_prompt(fields: Fields) -> list[Fields]:
    return [{"prompt": _prompt(fields), "references": _references(fields["references"])}]


def _prompt_of_demonstration(fields: Fields) -> list[Fields]:
    return [_with_reference(as_answer(_response(fields), _prompt(fields), "response"))]


def _prompt_alone(fields: Fields) -> list[Fields]:
    return [{"prompt": _prompt(fields), "references": []}]


def _prompts_of_conversation(fields: Fields) -> list[Fields]:
    conversation, context = _conversation(fields)
    found = [_with_reference(turn) for turn in answered_turns(conversation, context)]
    if conversation[-1]["role"] == "user":
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
    return {"prompt": turn.prompt, "references": [] if turn.is_context else [turn.response]}


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


def _tag(value: object, field: str) -> str | None:
    """Read the name of an annotator or category, or a whole number as one; null and nothing are none."""
    # pandas writes whole numbers as 3.0 where some are null. From 1e+16 on different ids may have become one number.
    if type(value) in (int, float) and WHOLE_NUMBER.fullmatch(str(value)):
        value = str(value)
    name = as_name(as_text(value, field)) if value is not None else ""
    if len(name) > LONGEST_TAG:
        raise ShapeError(f"{field} has {len(name)} characters where a name of at most {LONGEST_TAG} is needed")
    return name or None


_LABELLED = ("system", "annotator", *LABEL_COLUMNS)
_ANSWERED = [
    Shape(("prompt", "response"), ("system", "annotator"), _answered_prompt),
    Shape(("prompt", "completion"), ("system", "annotator"), _answered_prompt),
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
SHAPES: dict[Kind, list[Shape]] = {
    "demonstrations": [
        Shape(("prompt", "response"), ("system", "annotator"), _answered_prompt),
        Shape(("prompt", "completion"), ("system", "annotator"), _answered_prompt),
        Shape(("messages",), ("system", "annotator"), _answered_conversation),
        Shape(("conversations",), ("system", "annotator"), _answered_conversation),
        Shape(("instruction", "output"), ("input", "system", "annotator"), _answered_instruction),
    ],
    "preferences": _COMPARED,
    "ratings": [
        *(
            Shape((*each.required, label), each.optional, _rated(each.read))
            for label in (LABEL, RATING)
            for each in _ANSWERED
        ),
        *(each._replace(read=_both_rated(each.read)) for each in _COMPARED),
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
