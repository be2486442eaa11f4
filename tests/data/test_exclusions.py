"""The file of exclusions is read whole, line by line, and grows without losing what people wrote."""

from pathlib import Path

import pytest

from tasks.data.exclusions import add_exclusion, read_exclusions
from tasks.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()
    return Path("exclude.txt")


def test_the_file_of_the_project_excludes_nothing() -> None:
    assert read_exclusions(ROOT / "exclude.txt") == frozenset()


def test_rows_sources_annotators_and_comments(path: Path) -> None:
    path.write_text(
        "# why\n\nrow 1c9d # asked for by mail\nsource raw/week #3/pairs one.jsonl\nsource a#b.csv\nrow 1c9d\n"
        "annotator 7\nannotator  Ann Lee  # left\n"
    )

    assert read_exclusions(path) == {
        ("row", "1c9d"),
        ("source", "raw/week"),
        ("source", "a#b.csv"),
        ("annotator", "7"),
        ("annotator", "Ann Lee"),
    }


@pytest.mark.parametrize("line", ["1c9d", "row", "row  # nothing", "rows 1c9d", "annotator", "annotators 3"])
def test_a_line_that_says_nothing_is_named(path: Path, line: str) -> None:
    path.write_text(f"row 1c9d\n{line}\n")

    with pytest.raises(
        InputError,
        match=r"exclude.txt row 2 names nothing to exclude: write `row ID`, `source NAME` or `annotator NAME`",
    ):
        read_exclusions(path)


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.write_bytes(b"row \xff\n")
    with pytest.raises(InputError, match=r"exclude.txt is not UTF-8 text \(byte 4\)"):
        read_exclusions(path)
    path.unlink()
    with pytest.raises(InputError, match=r"exclude.txt is no file: restore it from git, or make an empty one"):
        read_exclusions(path)


def test_a_line_is_added_once_after_what_is_there(path: Path) -> None:
    path.write_text("# ours\nrow 1c9d  # asked for")  # no line feed at its end

    assert add_exclusion(path, "source", "raw/my pairs.jsonl")
    assert not add_exclusion(path, "source", "raw/my pairs.jsonl")
    assert not add_exclusion(path, "row", "1c9d")
    assert add_exclusion(path, "annotator", "1c9d")
    assert path.read_text() == "# ours\nrow 1c9d  # asked for\nsource raw/my pairs.jsonl\nannotator 1c9d\n"
    assert ("source", "raw/my pairs.jsonl") in read_exclusions(path)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a #b"])
def test_a_name_that_no_line_can_hold(path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be written as a line of exclude\.txt: name one source"):
        add_exclusion(path, "source", name)
    assert path.read_text() == ""
