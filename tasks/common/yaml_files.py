"""YAML that people write: read within bounds, and only where all readers of YAML read the same.

DVC reads params.yaml by libyaml, we change it by ruamel.yaml, others have PyYAML and its YAML 1.1, to which 012 is 10
and yes is true. What they read differently is refused, so that every value means what it says.
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
LONGEST_PLAIN = 1_000  # characters without quotes around them: no number has more digits
UNREADABLE = (YAMLError, ValueError, OverflowError, TypeError)  # a date such as 2026-99-99 is no YAMLError


class Difference(NamedTuple):
    """A value of which two readings are not the same."""

    key: str
    ours: object
    theirs: object


def read_yaml(path: Path) -> object:
    """Read a YAML file.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is no file, too large, no UTF-8 or no YAML, or not all readers read the same.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:  # a link to itself, a name that is too long
        raise InputError(f"{path} cannot be read ({error.strerror}): mend its name or link") from None
    if not stat.S_ISREG(mode):  # a pipe would be waited for, and some devices never end
        raise InputError(f"{path} is no file: put a text file in its place")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES:,} bytes: restore it, as settings never have so many")
    try:
        return parse_yaml(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def parse_yaml(text: str, origin: str, *, for_us_alone: bool = False) -> object:
    """Read YAML as DVC does: by YAML 1.2, where 1e-4 is a number.

    Args:
        text: what to read.
        origin: where it stands, for messages.
        for_us_alone: whether nobody else will read it, so that it does not matter how they would.

    Raises:
        InputError: it is no YAML, goes beyond the bounds, or not all readers read the same.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # of an anchor's second use, and of 1e-4 in YAML 1.1
        try:
            _check_bounds(text, origin)
            ours = _reader().load(text)
        except UNREADABLE as error:
            raise InputError(f"{origin}{_row(error)} {_fault(error)}") from None
        if not for_us_alone:
            _check_readers_agree(text, ours, origin)
    return ours


def difference(ours: object, theirs: object, key: str = "") -> Difference | None:
    """Find the first value that two readings do not share; 1, 1.0 and true are three values."""
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
        return "is not valid YAML: mend its indentation, quotes or colons"
    return f"holds a value that cannot be read ({error}): mend it, or put it in quotes if it is text"


def _row(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" row {mark.line + 1}" if mark else ""


def _check_bounds(text: str, origin: str) -> None:
    """Look at the text before anything is built of it, which recurses, and multiplies where there are aliases."""
    sizes: dict[str, int] = {}  # of what an anchor names, from its end on
    containers: list[tuple[str | None, int]] = []  # that are open: anchor, and how many values came before
    values = documents = 0
    for event in _reader().parse(text):
        documents += isinstance(event, DocumentStartEvent)
        if fault := _fault_of(event, documents, sizes):
            raise InputError(f"{origin} row {event.start_mark.line + 1} {fault}")
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
            raise InputError(f"{origin} row {event.start_mark.line + 1} goes beyond {bound}: write less, or restore it")


def _fault_of(event: Event, documents: int, sizes: dict[str, int]) -> str | None:
    if documents > 1:
        return "begins a second document: keep one"
    if tag := getattr(event, "tag", None):
        return f"has the tag {quoted(tag)}: write the value without it"
    if isinstance(event, AliasEvent) and event.anchor not in sizes:
        return f"has *{shortened(event.anchor, 50)}, which names nothing that ends before it: write the value out"
    if isinstance(event, ScalarEvent) and not event.style and len(event.value) > LONGEST_PLAIN:
        return f"has a value of {len(event.value):,} characters: shorten it, or put it in quotes if it is text"
    return None


def _check_readers_agree(text: str, ours: object, origin: str) -> None:
    try:
        as_dvc = _reader(as_dvc=True).load(text)
    except UNREADABLE as error:
        key, value = _place(text, ours, error)
        raise InputError(
            f"{origin}{_row(error)}: {key} is {quoted(value)} to one reader of YAML, and DVC's cannot read it: "
            f"{_unmistakable(value)}"
        ) from None
    try:
        older = _reader((1, 1)).load(text)
    except UNREADABLE as error:
        raise InputError(
            f"{origin}{_row(error)} is read by YAML 1.2 and not by YAML 1.1: put its texts in quotes"
        ) from None
    if found := difference(ours, as_dvc) or difference(ours, older):
        raise InputError(
            f"{origin}: {found.key} is {quoted(found.ours)} to one reader of YAML and {quoted(found.theirs)} to "
            f"another: {_unmistakable(found.ours)}"
        )


def _unmistakable(value: object) -> str:
    if isinstance(value, str):
        return f"write {shortened(json.dumps(value, ensure_ascii=False), 200)}"
    if type(value) in (int, float):
        return f"write {value}, or put it in quotes if it is text"
    return "put its texts in quotes"


def _place(text: str, ours: object, error: Exception) -> tuple[str, object]:
    """Give the key where another reader failed, with its value to us."""
    mark = getattr(error, "context_mark", None) or getattr(error, "problem_mark", None)
    place, value = "it", ours
    for path, node in _keys(_reader().compose(text)):
        if mark and (node.start_mark.line, node.start_mark.column) <= (mark.line, mark.column):
            place, value = ".".join(path), _value(ours, path)
    return place, value


def _keys(node: Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every key of a document in its order, with the path to it."""
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
