"""YAML written by people: read with size limits, and only if all YAML parsers give the same values.

DVC reads params.yaml with libyaml, `trueline configure` edits it with ruamel.yaml, and PyYAML reads YAML 1.1, where 012
is 10 and yes is true. A value on which they differ is refused.
"""

import json
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError, YAMLWarning
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from tasks.common.errors import InputError
from tasks.common.safe_text import quoted, shortened

MOST_BYTES = 2**20
DEEPEST = 20  # lists and mappings within one another
MOST_VALUES = 50_000  # aliases written out
LONGEST_PLAIN = 1_000  # characters of an unquoted value: no number has more digits
UNREADABLE = (YAMLError, ValueError, OverflowError, TypeError)  # a date such as 2026-99-99 is no YAMLError


class Difference(NamedTuple):
    """A value that two parsers read differently."""

    key: str
    ours: object
    theirs: object


def read_yaml(path: Path) -> object:
    """Read a YAML file.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is not a file, too large, not UTF-8 or not YAML, or parsers differ on it.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:  # a link to itself, a name that is too long
        raise InputError(f"{path} cannot be read ({error.strerror}): fix its name or link") from None
    if not stat.S_ISREG(mode):  # a pipe would block, and some devices never end
        raise InputError(f"{path} is not a file: put a text file in its place")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES:,} bytes: restore it, settings are never that long")
    try:
        return parse_yaml(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def parse_yaml(text: str, source: str, *, for_us_alone: bool = False) -> object:
    """Read YAML as DVC does: by YAML 1.2, where 1e-4 is a number.

    Args:
        text: what to read.
        source: name of the source, for messages.
        for_us_alone: whether no other parser will read it, so that differences do not matter.

    Raises:
        InputError: it is not YAML, exceeds the limits, or parsers differ on it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # about an anchor's second use, and about 1e-4 in YAML 1.1
        try:
            _check_bounds(text, source)
            ours = _reader().load(text)
        except UNREADABLE as error:
            raise InputError(f"{source}{_row(error)} {_fault(error)}") from None
        if not for_us_alone:
            _check_readers_agree(text, ours, source)
    return ours


def difference(ours: object, theirs: object, key: str = "") -> Difference | None:
    """Find the first value in which two parsed files differ; 1, 1.0 and true are different."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and len(ours) == len(theirs):
        inside = [(f"{key}.{name}".lstrip("."), name, other) for name, other in zip(ours, theirs, strict=True)]
        inside += [(where, ours[name], theirs.get(name)) for where, name, _ in inside]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        inside = [(f"{key}[{place}]", *both) for place, both in enumerate(zip(ours, theirs, strict=True))]
    else:  # nan is not equal to itself
        return None if type(ours) is type(theirs) and repr(ours) == repr(theirs) else Difference(key, ours, theirs)
    return next((found for where, one, other in inside if (found := difference(one, other, where))), None)


def _reader(version: tuple[int, int] | None = None, *, as_dvc: bool = False) -> YAML:
    reader = YAML(typ="safe", pure=not as_dvc)
    if version:
        reader.version = version
    return reader


def _fault(error: Exception) -> str:
    if isinstance(error, DuplicateKeyError):
        return "names a key a second time: keep one of the two"
    if isinstance(error, YAMLError):
        return "is not valid YAML: fix its indentation, quotes or colons"
    return f"has a value that cannot be read ({error}): fix it, or put it in quotes if it is text"


def _row(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" row {mark.line + 1}" if mark else ""


def _check_bounds(text: str, source: str) -> None:
    """Check the limits before parsing: building values recurses, and aliases multiply."""
    sizes: dict[str, int] = {}  # of the values of finished anchors
    containers: list[tuple[str | None, int]] = []  # open ones: anchor, and number of values before
    values = documents = 0
    for event in _reader().parse(text):
        documents += isinstance(event, DocumentStartEvent)
        if fault := _fault_of(event, documents, sizes):
            raise InputError(f"{source} row {event.start_mark.line + 1} {fault}")
        anchor = getattr(event, "anchor", None)
        if isinstance(event, AliasEvent):
            values += sizes[event.anchor]
        elif isinstance(event, ScalarEvent):
            values += 1
            sizes |= {anchor: 1} if anchor else {}
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            containers.append((anchor, values))
            values += 1
            sizes.pop(anchor or "", None)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            anchor, before = containers.pop()
            sizes |= {anchor: values - before} if anchor else {}
        if values > MOST_VALUES or len(containers) > DEEPEST:
            bound = f"{MOST_VALUES:,} values, aliases written out" if values > MOST_VALUES else f"{DEEPEST} levels"
            raise InputError(f"{source} row {event.start_mark.line + 1} exceeds {bound}: shorten or restore it")


def _fault_of(event: Event, documents: int, sizes: dict[str, int]) -> str | None:
    if documents > 1:
        return "starts a second document: keep one"
    if tag := getattr(event, "tag", None):
        return f"has the tag {quoted(tag)}: write the value without it"
    if isinstance(event, AliasEvent) and event.anchor not in sizes:
        return f"has *{shortened(event.anchor, 50)}, but no anchor of that name is before it: write the value out"
    if isinstance(event, ScalarEvent) and not event.style and len(event.value) > LONGEST_PLAIN:
        return f"has a value of {len(event.value):,} characters: shorten it, or put it in quotes if it is text"
    return None


def _check_readers_agree(text: str, ours: object, source: str) -> None:
    try:
        as_dvc = _reader(as_dvc=True).load(text)
    except UNREADABLE as error:
        key, value = _place(text, ours, error)
        raise InputError(
            f"{source}{_row(error)}: {key} is {quoted(value)} for one YAML parser, and DVC's cannot read it: "
            f"{_unmistakable(value)}"
        ) from None
    try:
        older = _reader((1, 1)).load(text)
    except UNREADABLE as error:
        raise InputError(f"{source}{_row(error)} is valid YAML 1.2 but not YAML 1.1: put its texts in quotes") from None
    if found := difference(ours, as_dvc) or difference(ours, older):
        raise InputError(
            f"{source}: {found.key} is {quoted(found.ours)} for one YAML parser and {quoted(found.theirs)} for "
            f"another: {_unmistakable(found.ours)}"
        )


def _unmistakable(value: object) -> str:
    if isinstance(value, str):
        return f"write {shortened(json.dumps(value, ensure_ascii=False), 200)}"
    if type(value) in (int, float):
        return f"write {value}, or put it in quotes if it is text"
    return "put its texts in quotes"


def _place(text: str, ours: object, error: Exception) -> tuple[str, object]:
    """Return the key where another parser failed, with our value."""
    mark = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
    place, value = "it", ours
    for path, node in _keys(_reader().compose(text)):
        if mark and (node.start_mark.line, node.start_mark.column) <= (mark.line, mark.column):
            place, value = ".".join(path), _value(ours, path)
    return place, value


def _keys(node: Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Yield every key of a document in order, with its path."""
    if isinstance(node, SequenceNode):
        for inner in node.value:
            yield from _keys(inner, path)
    if isinstance(node, MappingNode):
        for name, inner in node.value:
            yield (*path, str(name.value)), name
            yield from _keys(inner, (*path, str(name.value)))


def _value(content: object, path: tuple[str, ...]) -> object:
    for name in path:
        if not isinstance(content, dict) or name not in content:
            break
        content = content[name]
    return content
