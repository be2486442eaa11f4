"""Changing params.yaml by settings files or single keys; comments stay, and nothing invalid is written."""

import io
import re
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from tasks.common.errors import InputError
from tasks.common.files import replacing
from tasks.common.yaml_files import parse_yaml, read_yaml
from tasks.methods import METHODS
from tasks.settings.params import PARAMS_FILE, load_params, parse_params

FLOAT, NULL = "tag:yaml.org,2002:float", "tag:yaml.org,2002:null"
# KEY=VALUE; a file's name may hold an equals sign, too.
ASSIGNMENT = re.compile(r"(\w+(?:\.[^.=]+){0,9})=(.*)", re.DOTALL)
# Text that every reader of YAML takes for the same text without quotes, unless it is one of these words.
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*")
# Whose keys are the user's to name.
OPEN = ("columns.", "options.")
WORDS = {"yes", "no", "y", "n", "on", "off", "true", "false", "null"}


class Change(NamedTuple):
    """A changed setting."""

    key: str
    before: Any
    after: Any


def configure(overlays: list[str], path: Path = PARAMS_FILE) -> list[Change]:
    """Lay settings over params.yaml, later ones over earlier ones, and write it whole or not at all.

    Args:
        overlays: each a YAML file with the shape of params.yaml, or KEY=VALUE, such as align.method=dpo. One that names
            a method brings the settings that this name stands for.
        path: the settings file.

    Returns:
        What has changed, in the order of the file.

    Raises:
        InputError: an overlay cannot be read, or the settings would no longer hold; nothing is written then.
    """
    load_params(path)
    settings = _editor().load(path.read_text(encoding="utf-8-sig"))
    before = parse_yaml(_written(settings), str(path))
    for overlay in overlays:
        given = _read(overlay)
        for name, value in _of_method(given).items():
            _merge(settings, _nested(name.split("."), value))
        _merge(settings, given)
    text = _written(settings)
    after = parse_yaml(text, str(path))
    assert isinstance(after, dict)
    parse_params(after, str(path))
    changes = list(_changes(before, after))
    if changes:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
    return changes


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 2**20  # no line is broken
    editor.indent(mapping=2, sequence=4, offset=2)  # as in the file
    # To a reader of YAML 1.1, such as PyYAML, 5e-05 is text: a number gets its point.
    editor.representer.add_representer(float, lambda writer, value: writer.represent_scalar(FLOAT, _with_point(value)))
    editor.representer.add_representer(type(None), lambda writer, _: writer.represent_scalar(NULL, "null"))
    return editor


def _written(settings: object) -> str:
    text = io.StringIO()
    _editor().dump(settings, text)
    return text.getvalue()


def _with_point(value: float) -> str:
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _read(overlay: str) -> Mapping[str, Any]:
    assignment = ASSIGNMENT.fullmatch(overlay)
    if assignment and not _exists(overlay):
        return _nested(assignment[1].split("."), parse_yaml(assignment[2], overlay, for_us_alone=True))
    try:
        content = read_yaml(Path(overlay))
    except FileNotFoundError:
        raise InputError(f"{overlay} does not exist: give a settings file, or KEY=VALUE") from None
    except (OSError, ValueError):
        raise InputError(f"{overlay} cannot be read: give a YAML text file, or KEY=VALUE") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{overlay} holds no settings: write them as in params.yaml")
    return content


def _of_method(overlay: Mapping[str, Any]) -> Mapping[str, object]:
    """Give the settings that the name of a method stands for, where an overlay names one."""
    align = overlay.get("align")
    name = align.get("method") if isinstance(align, Mapping) else None
    method = METHODS.get(name) if isinstance(name, str) else None
    return method.settings if method else {}


def _exists(overlay: str) -> bool:
    with suppress(OSError, ValueError):  # too long for a name, or one that no file can have
        return Path(overlay).exists()
    return False


def _nested(parts: list[str], value: object) -> dict[str, Any]:
    first, *rest = parts
    return {first: _nested(rest, value) if rest else value}


def _merge(settings: MutableMapping[str, Any], overlay: Mapping[str, Any], path: str = "") -> None:
    for name, value in overlay.items():
        here = f"{path}{name}"
        if name not in settings and not path.endswith(OPEN):
            raise InputError(f"{here} is not a setting: fix its spelling (params.yaml lists them all)")
        present = settings.get(name)
        is_of_new_source = name == "options" and "source" in overlay
        if isinstance(value, Mapping) and isinstance(present, MutableMapping) and not is_of_new_source:
            _merge(present, value, f"{here}.")
        elif isinstance(value, Mapping) and isinstance(present, MutableSequence):
            _merge_named(present, value, here)
        else:
            settings[name] = _unmistakable(value)
            if isinstance(settings, CommentedMap) and isinstance(present, CommentedSeq):
                _keep_comments_behind(present, settings, name)


def _merge_named(entries: MutableSequence[Any], overlay: Mapping[str, Any], path: str) -> None:
    """Lay settings over the entries of a list that have names, such as rewards.training.reward_model.weight."""
    named = {each["name"]: each for each in entries if isinstance(each, MutableMapping) and "name" in each}
    for name, value in overlay.items():
        if name not in named or not isinstance(value, Mapping):
            known = ", ".join(named) or "none"
            raise InputError(f"{path}.{name} names no entry of the list: give KEY=VALUE of one of them ({known})")
        _merge(named[name], value, f"{path}.{name}.")


def _keep_comments_behind(replaced: CommentedSeq, settings: CommentedMap, name: str) -> None:
    """Hang the comments behind a list over several lines on its key: ruamel.yaml has them end the list."""
    if comments := replaced.ca.end:
        text = "".join(" " * each.start_mark.column + each.value for each in comments)
        settings.ca.items[name] = [None, None, CommentToken(f"\n{text}", CommentMark(0), None), None]


def _unmistakable(value: object) -> object:
    """Have text written in quotes wherever one reader might take it for something else."""
    if isinstance(value, str):
        is_plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if is_plain else DoubleQuotedScalarString(value)
    # On one line: over several, lists and mappings would come below the comment that follows their key.
    if isinstance(value, list):
        entries = CommentedSeq(_unmistakable(each) for each in value)
        entries.fa.set_flow_style()
        return entries
    if isinstance(value, Mapping):
        mapping = CommentedMap({_unmistakable(name): _unmistakable(each) for name, each in value.items()})
        mapping.fa.set_flow_style()
        return mapping
    return value


def _changes(before: object, after: object, path: str = "") -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            yield from _changes(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield Change(path, before, after)
