"""Python files that params.yaml names: run from their path alone, with their faults in one sentence."""

import sys
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.common.python_files import errors_of, load_function, load_module


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "own.py") -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_a_function_is_taken_from_the_file_as_it_is_now() -> None:
    assert load_function(write("def one(): return 1"), "one")() == 1
    assert load_function(write("def one(): return 2"), "one")() == 2


def test_a_file_hides_no_installed_module_and_is_hidden_by_none() -> None:
    module = load_module(write("import json\nnumber = json.loads('3')", "json.py"))
    assert module.number == 3
    assert sys.modules["json"].__file__ != "json.py"


def test_neither_its_folder_is_searched_nor_is_anything_written_beside_it() -> None:
    write("number = 1", "beside.py")
    with pytest.raises(
        InputError,
        match=r"^own\.py cannot be loaded, ModuleNotFoundError: No module named 'beside' \(line 2\): fix it, or",
    ):
        load_module(write("\nimport beside"))
    assert sorted(path.name for path in Path().iterdir()) == ["beside.py", "own.py"]


def test_classes_of_the_standard_library_work_in_it() -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Row:\n    n: int\n"
    assert load_module(write(text)).Row(3).n == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def one(:", r"own\.py:two is no Python file, SyntaxError: invalid syntax \(line 1\): fix it"),
        ("x = '\0'", r"own\.py:two is no Python file, \w+Error: .*null bytes.*: fix it"),
        ("x = 1\nx / 0", r"own\.py:two cannot be loaded, ZeroDivisionError: division by zero \(line 2\): fix it"),
        ("two = 2", r"own\.py:two has no such function: write it, or correct the name in params\.yaml"),
        ("", r"own\.py:two has no such function: write it"),
    ],
)
def test_a_file_that_cannot_serve_is_named_with_the_line_and_the_cure(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        load_function(write(text), "two")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"^gone\.py:two does not exist: correct its name in params\.yaml$"):
        load_function(Path("gone.py"), "two")


@pytest.mark.parametrize("error", [MemoryError, ConnectionResetError, TimeoutError, InputError])
def test_what_is_no_fault_of_the_function_stays_what_it_is(error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^as it was$"), errors_of(Path("own.py"), "own.py:two", "fix it"):
        raise error("as it was")
