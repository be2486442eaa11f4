"""Rows of many shapes to the fields of the canonical records.

A shape is a set of columns and the way to read them. It is recognised once, from the columns of the first row, after
the column map has renamed them; known.py lists every shape that is taken, in order of preference.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from tasks.common.errors import InputError, quoted
from tasks.data.names import WHOLE_NUMBER, as_name
from tasks.data.records import PAIRS, TAGS, Kind, Message, Vote
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
from tasks.data.shapes.known import SHAPES, Shape
from tasks.data.shapes.statements import (
    RATING,
    STATEMENTS,
    Left,
    is_bad,
    is_read,
    reason_to_leave_out,
    strength_of,
)
from tasks.data.shapes.tools import TOOLS, as_tools
from tasks.data.shapes.values import IgnorableError, ShapeError, as_text, is_nothing, listed
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.base import Reasoning
from tasks.settings.params import RatingSource, Source

# What entries say about themselves, beside their content.
ABOUT = ("tied", "annotator", "weight", "strength")
LONGEST_TAG = 100  # characters: a longer one is no name, but a column taken for another


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
    weight: float | None = None  # of its pair in a loss, where that is not 1
    strength: float | None = None  # by how much the chosen answer is better, as the row says


def shape_rows(
    rows: Iterable[RawRow],
    kind: Kind,
    source: Source,
    name: str,
    *,
    bad: BadRows,
    tally: Tally,
    reasoning: Reasoning | None = None,
) -> Iterator[ShapedRow]:
    """Read the rows of a file, of any known shape, as rows of one kind; outputs know the file by `name`.

    Args:
        rows: as the file has them.
        kind: of the records that they are to become.
        source: the file, with its column map and what it ignores.
        name: the file's in outputs.
        bad: those of its rows that cannot be read; they are reported at the end of the file.
        tally: what is not read of the others.
        reasoning: the marks for reasoning that messages have in a key of its own; None: it is refused.

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
            shaped = _shaped(fields, shape, kind, source, tally=tally, reasoning=reasoning)
        except ShapeError as error:
            way_out = f" (to leave it out, name it in prepare.{kind}.ignore in params.yaml)"
            bad.add(row, f": {error}{way_out if isinstance(error, IgnorableError) else ''}")
            continue
        for each in shaped:
            yield each._replace(source=name, row=row)
    bad.stop()


def _shaped(
    fields: Fields, shape: Shape, kind: Kind, source: Source, *, tally: Tally, reasoning: Reasoning | None
) -> list[ShapedRow]:
    """Read one row; whose it is, the caller knows."""
    whole = opened(fields, source, tally, reasoning)
    named = _of_shape(whole, shape, source.columns)
    entries = [_by_threshold(entry, source) for entry in shape.read(named)]
    # A column that rewards are given, and that no field of ours is read from, says nothing about the row.
    extra = {*extra_of(source).values()}.difference(source.columns.values())
    statements = {name: value for name, value in whole.items() if name not in {*extra, *shape.required}}
    tools = as_tools(statements.get(TOOLS))
    entries = [entry | {"prompt": _with_tools(entry["prompt"], tools)} for entry in entries]
    left = reason_to_leave_out(statements, kind)
    if kind == "prompts" and is_bad(statements):  # it is no reference, but the prompt is one all the same
        entries = [entry | {"references": []} for entry in entries]
    read = {*shape.required, *shape.optional, *(name for name in statements if is_read(name, kind))}
    count_unused(fields, read, source, tally)
    about = {"strength": strength_of(statements)} if kind in PAIRS else {}
    common = ShapedRow("", 0, [], _tag(named[TAGS[kind]], TAGS[kind]), left=left, columns=extra_columns(fields, source))
    groups = [[entry] for entry in entries] if shape.are_apart else [entries]
    return [_of_entries(common, group, about) for group in groups]


def _with_tools(prompt: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """Let a conversation begin with the functions that may be called in it: those of the column, or its own.

    Raises:
        ShapeError: it has its own, and the column has others.
    """
    own = next((message["tools"] for message in prompt if "tools" in message), [])
    if own and tools and own != tools:
        raise ShapeError(f"{TOOLS} and the first message name different functions")
    if not own and not tools:
        return prompt
    first, *others = ({key: value for key, value in message.items() if key != "tools"} for message in prompt)
    return cast("list[Message]", [{**first, "tools": tools or own}, *others])


def _of_entries(common: ShapedRow, entries: Sequence[Fields], about: Fields) -> ShapedRow:
    """Give a row its entries, and what they or their row say about them."""
    found = {**about, **{name: entry.pop(name) for entry in entries for name in ABOUT if name in entry}}
    return common._replace(
        entries=list(entries),
        tag=found.get("annotator", common.tag),
        tied=found.get("tied", False),
        weight=found.get("weight"),
        strength=found.get("strength"),
    )


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


def _tag(value: object, field: str) -> str | None:
    """Read the name of an annotator or category, or a whole number as one; null and nothing are none."""
    # pandas writes whole numbers as 3.0 where some are null. From 1e+16 on different ids may have become one number.
    if type(value) in (int, float) and WHOLE_NUMBER.fullmatch(str(value)):
        value = str(value)
    name = as_name(as_text(value, field)) if value is not None else ""
    if len(name) > LONGEST_TAG:
        raise ShapeError(f"{field} has {len(name)} characters where a name of at most {LONGEST_TAG} is needed")
    return name or None
