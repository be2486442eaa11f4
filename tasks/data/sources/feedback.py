"""Folders that `trueline collect` and `label answers` write: which of their files is a source, and its origin."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.files import read_json

# Answers and whose they are; then the pairs of them, and what made these. The second of each is written last.
ANSWERS, MANIFEST = "answers.jsonl", "manifest.json"
PAIRS, LABELS = "pairs.jsonl", "labels.json"


def is_collected(folder: Path) -> bool:
    """Tell whether `trueline collect` wrote a folder."""
    return (folder / MANIFEST).is_file()


def pairs_of(folder: Path) -> Path:
    """Give the pairs in a folder that `trueline collect` wrote.

    Raises:
        InputError: its answers are not labelled yet.
    """
    if not (folder / LABELS).is_file():
        raise InputError(f"{folder} has no {LABELS}: trueline label answers {folder} writes it")
    return folder / PAIRS


def with_pairs(found: Iterable[Path]) -> Iterator[Path]:
    """Put in the place of each collected folder its pairs; one that is not labelled yet has none."""
    for path in found:
        if not is_collected(path):
            yield path
        elif (path / LABELS).is_file():
            yield pairs_of(path)


def origin(path: Path) -> dict[str, Any]:
    """Say who answered and what ordered the answers, of the pairs in a labelled folder; nothing of other files.

    Raises:
        InputError: labels.json is not what `trueline label answers` wrote.
    """
    labels = path.with_name(LABELS)
    if path.name != PAIRS or not labels.is_file():
        return {}
    content = read_json(labels)
    try:
        return {name: content[name] for name in ("policy", "annotator", "agreement")}
    except KeyError as error:
        raise InputError(f"{labels} has no {error}: run trueline label answers {path.parent} again") from None
