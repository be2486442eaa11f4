"""Rows that a function of a Python file yields."""

from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.python_files import license_of
from tasks.data.sources.python_source import python_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.data.sources.source import identity, read_rows
from tasks.settings.params import Source


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(text: str, **options: Any) -> Source:
    Path("own.py").write_text(text)
    return Source(source="own.py", columns={}, ignore=[], limit=None, options=options)


def rows_of(text: str, **options: Any) -> list[RawRow]:
    bad = BadRows("own.py")
    rows = list(python_rows(source(text, **options), "prompts", 7, bad))
    bad.stop()
    return rows


def test_rows_are_those_of_the_function_of_the_kind_called_with_seed_and_options() -> None:
    text = "def prompts(seed, options):\n    for n in range(options['rows']):\n        yield {'prompt': f'{seed} {n}'}"
    assert rows_of(text, rows=2) == [RawRow(1, {"prompt": "7 0"}), RawRow(2, {"prompt": "7 1"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def others(seed, options): pass", r"own\.py:prompts has no such function: write it"),
        (
            "def prompts(seed): pass",
            r"own\.py:prompts raised TypeError: prompts\(\) got an unexpected .*'options': fix it, or",
        ),
        (
            "def prompts(seed, options): return 3",
            r"own\.py:prompts raised TypeError: 'int' object is not iterable: fix it",
        ),
        ("def prompts(seed, options): return []", r"own\.py:prompts yields no rows: fix it, or prepare\.prompts\.opt"),
        (
            "def prompts(seed, options):\n    yield {'prompt': 'a'}\n    options['rows']",
            r"own\.py:prompts row 2 raised KeyError: 'rows' \(line 3\): fix it, or prepare\.prompts\.options in par",
        ),
        (
            "def prompts(seed, options):\n    yield {'prompt': 'a'}\n    yield ['b']",
            r"own\.py row 2 is not a dict with texts as keys: yield \{column: value, \.\.\.\}",
        ),
        ("def prompts(seed, options):\n    yield {1: 'a'}", r"own\.py row 1 is not a dict with texts as keys"),
    ],
)
def test_a_function_that_fails_is_reported_with_file_row_and_cure(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        rows_of(text)


def test_a_python_file_among_files_of_rows_is_not_run() -> None:
    with pytest.raises(InputError, match=r"^own\.py ends in \.py, which is not known: name it as the source itself"):
        list(read_rows(source("raise SystemExit(9)"), BadRows("own.py")))


def test_a_licence_is_what_the_file_states() -> None:
    source("LICENSE = 'mit'")
    assert license_of(Path("own.py")) == {"license": "mit"}
    assert identity(Path("own.py"))["license"] == "mit"
    source("")
    assert license_of(Path("own.py")) == {}
    assert identity(Path("own.py")).keys() == {"sha256"}


@pytest.mark.parametrize("stated", ["3", "''", "'MIT License'"])
def test_a_licence_that_the_hub_would_not_know_is_refused(stated: str) -> None:
    source(f"LICENSE = {stated}")
    with pytest.raises(InputError, match=r"^own\.py: LICENSE must be a name of the Hugging Face hub's, such as"):
        license_of(Path("own.py"))
