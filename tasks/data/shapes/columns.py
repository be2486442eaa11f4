"""The columns of a row before its shape is read: renamed, what is ignored left out, and what nothing reads counted."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from tasks.common.errors import InputError
from tasks.data.extra_columns import columns_fault
from tasks.data.shapes.reasoning import with_reasoning
from tasks.data.shapes.serialized import read_written, read_written_list, read_written_texts
from tasks.data.shapes.values import ShapeError, is_nothing
from tasks.settings.base import Reasoning
from tasks.settings.params import PromptSource, Source

Fields = dict[str, Any]
# Columns that may hold a conversation, perhaps written out as a text.
CONVERSATIONS = {"prompt", "response", "completion", "messages", "conversations", "chosen", "rejected"} | {
    *("response_a", "response_b", "output_1", "output_2", "conversation_a", "conversation_b")
}
# Columns with several answers to one prompt, or what is beside them.
LISTS = {"responses", "completions", "answers", "scores", "ranks"}
MOST_COLUMNS, LONGEST_NAME = 100, 100  # that are counted by name, and its characters
OTHERS = "(others)"


class Tally(NamedTuple):
    """Rows by the name of what no record of them holds."""

    unused: Counter[str]  # columns that nothing reads
    ignored: Counter[str]  # columns and keys of messages that the settings leave out

    @classmethod
    def empty(cls) -> "Tally":
        """Begin to count."""
        return cls(Counter(), Counter())


def rename(fields: Mapping[str, Any], columns: Mapping[str, str]) -> Fields:
    """Give a row by our names: `columns` has theirs by ours, and takes the place of a column of the same name."""
    taken = set(columns.values())
    others = {name: value for name, value in fields.items() if name not in taken}
    return others | {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}


def extra_of(source: Source) -> Mapping[str, str]:
    """Give the extra columns of a source of prompts, theirs by the names that rewards know; other kinds have none."""
    return source.extra_columns if isinstance(source, PromptSource) else {}


def extra_columns(fields: Mapping[str, Any], source: Source) -> Fields:
    """Give a row's extra columns, those that say something.

    Raises:
        ShapeError: a value is no JSON, or all are too large.
    """
    named = {ours: fields.get(theirs) for ours, theirs in extra_of(source).items()}
    found = {ours: value for ours, value in named.items() if not is_nothing(value)}
    if fault := columns_fault(found):
        raise ShapeError(f"the extra column {fault}")
    return found


def opened(fields: Mapping[str, Any], source: Source, tally: Tally, reasoning: Reasoning | None = None) -> Fields:
    """Give a row by our names, with conversations as lists, and without what the source ignores.

    Reasoning that messages have in a key of its own is put into their texts, where its marks are known.

    Raises:
        ShapeError: a text looks like a conversation and cannot be read.
    """
    left = {name: value for name, value in fields.items() if name not in source.ignore}
    ignored = {name for name in source.ignore if not is_nothing(fields.get(name))}
    named = rename(left, source.columns)
    for name in CONVERSATIONS & named.keys():
        named[name] = read_written(named[name], name)
        if source.ignore:
            named[name] = _without(named[name], source.ignore, ignored)
        if reasoning:
            named[name] = with_reasoning(named[name], reasoning)
    if "references" in named:
        named["references"] = read_written_texts(named["references"], "references")
    named |= {name: read_written_list(named[name], name) for name in LISTS & named.keys()}
    tally.ignored.update(ignored)
    return named


def count_unused(fields: Mapping[str, Any], read: Collection[str], source: Source, tally: Tally) -> None:
    """Count the columns of a row that hold something and are neither read nor ignored.

    Args:
        fields: the row as the file has it.
        read: our names of the columns that are read.
        source: whose column map has their names.
        tally: what to count in.
    """
    known = {source.columns.get(name, name) for name in read} | {*source.ignore, *extra_of(source).values()}
    for name, value in fields.items():
        if name not in known and not is_nothing(value):
            short = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
            is_counted = short in tally.unused or len(tally.unused) < MOST_COLUMNS
            tally.unused[short if is_counted else OTHERS] += 1


def check_ignored(source: Source, setting: str) -> None:
    """Refuse to ignore a column that is to be read.

    Raises:
        InputError: the column map names it too.
    """
    for key, columns in {"columns": source.columns, "extra_columns": extra_of(source)}.items():
        both = sorted(set(source.ignore) & set(columns.values()))
        if both:
            raise InputError(f"{setting} in params.yaml names {both[0]!r} under ignore and under {key}: remove one")


def _without(value: object, names: Iterable[str], met: set[str]) -> object:
    """Leave keys out of a message or of the messages of a list, and add those that held something to `met`."""
    if isinstance(value, list):
        return [_without(item, names, met) for item in value]
    if isinstance(value, dict):
        met.update(name for name in names if not is_nothing(value.get(name)))
        return {name: content for name, content in value.items() if name not in names}
    return value
