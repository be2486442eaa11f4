"""Changing params.yaml: named settings or single keys laid over it; comments stay, and nothing invalid is written."""

import io
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from tasks.data.files import replacing
from tasks.errors import InputError
from tasks.params import PARAMS_FILE, load_params, parse_params, parse_yaml

FLOAT, NULL = "tag:yaml.org,2002:float", "tag:yaml.org,2002:null"


class Change(NamedTuple):
    """A setting that another value takes the place of."""

    key: str
    before: Any
    after: Any


def configure(overlays: list[str], path: Path = PARAMS_FILE) -> list[Change]:
    """Lay settings over params.yaml, later ones over earlier ones, and write it whole or not at all.

    Args:
        overlays: each a YAML file with the shape of params.yaml, or KEY=VALUE, such as align.method=dpo.
        path: the settings file.

    Returns:
        What has changed, in the order of the file.

    Raises:
        InputError: an overlay cannot be read, or the settings would no longer hold; nothing is written then.
    """
    load_params(path)
    editor = _editor()
    settings = editor.load(path.read_text(encoding="utf-8"))
    before = _plain(settings)
    for overlay in overlays:
        _merge(settings, _read(overlay))
    after = _plain(settings)
    parse_params(after, str(path))
    changes = list(_changes(before, after))
    if changes:
        with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
            editor.dump(settings, file)
    return changes


def _editor() -> YAML:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 200
    # To a reader of YAML 1.1, such as PyYAML, 5e-05 is text: a number gets its point.
    editor.representer.add_representer(float, lambda writer, value: writer.represent_scalar(FLOAT, _with_point(value)))
    editor.representer.add_representer(type(None), lambda writer, _: writer.represent_scalar(NULL, "null"))
    return editor


def _with_point(value: float) -> str:
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _plain(settings: object) -> dict[str, Any]:
    """Read the settings back as plain values."""
    text = io.StringIO()
    _editor().dump(settings, text)
    plain = parse_yaml(text.getvalue())
    assert isinstance(plain, dict)
    return plain


def _read(overlay: str) -> Mapping[str, Any]:
    key, equals, value = overlay.partition("=")
    try:
        if equals and not Path(overlay).exists():
            return _nested(key.split("."), parse_yaml(value))
        content = parse_yaml(Path(overlay).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{overlay} does not exist: give a settings file, or KEY=VALUE") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{overlay} cannot be read: give a YAML text file") from None
    except YAMLError:
        raise InputError(f"{overlay} is not valid YAML: mend its quotes, brackets or indentation") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{overlay} holds no settings: write them as in params.yaml")
    return content


def _nested(parts: list[str], value: object) -> dict[str, Any]:
    first, *rest = parts
    return {first: _nested(rest, value) if rest else value}


def _merge(settings: MutableMapping[str, Any], overlay: Mapping[str, Any], path: str = "") -> None:
    for name, value in overlay.items():
        here = f"{path}{name}"
        if name not in settings and not path.endswith("columns."):
            raise InputError(f"{here} is not a setting: mend its spelling (params.yaml lists them all)")
        present = settings.get(name)
        if isinstance(value, Mapping) and isinstance(present, MutableMapping):
            _merge(present, value, f"{here}.")
        else:
            settings[name] = _in_one_line(value) if isinstance(value, Mapping) else value


def _in_one_line(value: Mapping[str, Any]) -> CommentedMap:
    """Written over several lines, it would come below the comment that follows the key."""
    mapping = CommentedMap(value)
    mapping.fa.set_flow_style()
    return mapping


def _changes(before: object, after: object, path: str = "") -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            yield from _changes(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield Change(path, before, after)
