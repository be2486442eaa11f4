"""The file of exclusions is read whole, line by line, and grows without losing what people wrote."""

import os
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.data.exclusions import add_exclusion, read_exclusions

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
        ("annotator", "ann lee"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "./raw/w1.jsonl",
        "raw//w1.jsonl",
        '"raw/w1.jsonl"',
        "raw/w1.jsonl\t# why",
        "raw/w1.jsonl/",
        "{here}/raw/w1.jsonl",
    ],
)
def test_a_source_is_named_however_its_path_is_spelt(path: Path, name: str) -> None:
    path.write_text(f"source {name.format(here=Path.cwd())}\n")
    assert read_exclusions(path) == {("source", "raw/w1.jsonl")}


@pytest.mark.parametrize(
    "name",
    [
        " Ann \t Zoe\u0301 ",
        "Ann Zo\u00e9",
        '"Ann  Zo\\u00e9"',
        "ANN ZO\u00c9",
        "\u202eA\u200bnn Zo\u00e9",
        "\uff21nn Zo\u00e9",
    ],
)
def test_an_annotator_is_named_as_records_name_them(path: Path, name: str) -> None:
    path.write_text(f"annotator {name}\nannotator 3.0\nrow 1C9D\u200b\n")
    assert read_exclusions(path) == {("annotator", "ann zo\u00e9"), ("annotator", "3"), ("row", "1c9d")}


def test_a_name_in_quotes_may_hold_what_ends_a_plain_one(path: Path) -> None:
    path.write_text(
        'annotator "Team #7" # left\nannotator Team #8\nsource "a \\"b\\" #c.csv"\t# why\nannotator Bob "B" # x\n'
    )
    assert read_exclusions(path) == {
        ("annotator", "team #7"),
        ("annotator", "team"),
        ("annotator", 'bob "b"'),
        ("source", 'a "b" #c.csv'),
    }


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_line(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfrow 1c9d\r\nannotator 7\r\n")
    assert read_exclusions(path) == {("row", "1c9d"), ("annotator", "7")}
    assert add_exclusion(path, "annotator", "8")
    assert path.read_bytes().endswith(b"annotator 7\r\nannotator 8\n")


@pytest.mark.parametrize(
    "line",
    ["1c9d", "row", "row  # nothing", "rows 1c9d", "annotator", "annotators 3", 'row ""', 'row "\\x"', 'row "\\u0000"'],
)
def test_a_line_that_says_nothing_is_named(path: Path, line: str) -> None:
    path.write_text(f"row 1c9d\n{line}\n")

    with pytest.raises(
        InputError,
        match=r"exclude.txt row 2 names nothing to exclude: write `row ID`, `source NAME` or `annotator NAME`",
    ):
        read_exclusions(path)


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.write_bytes(b"row \xff\n")
    with pytest.raises(InputError, match=r"exclude.txt row 1 is not UTF-8 text \(byte 4 of the file\)"):
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


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Team #7", 'annotator "team #7"'),
        ("#7", 'annotator "#7"'),
        ("a#b", "annotator a#b"),
        ('"Ann"', r'annotator "\"ann\""'),
        ('Ann "Zoe" \\', 'annotator ann "zoe" \\'),
        ("Höhe #1", 'annotator "höhe #1"'),
        (" Ann \n Lee ", "annotator ann lee"),
        ("a\u200db", "annotator ab"),
        ("a\u0600b", r'annotator "a\u0600b"'),  # a sign that is not printed by itself
    ],
)
def test_what_is_added_is_read_again(path: Path, name: str, line: str) -> None:
    assert add_exclusion(path, "annotator", name)
    assert path.read_text() == line + "\n"
    assert not add_exclusion(path, "annotator", name)


def test_a_file_of_any_name_can_be_excluded(path: Path) -> None:
    for name in ("a\nb.csv", "a\u2028b.csv", " a.csv", "caf\udce9.csv", "a\\ #.csv"):
        assert add_exclusion(path, "source", name)
        assert ("source", name) in read_exclusions(path)


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_a_name_that_nothing_has(path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"names nothing: name one source"):
        add_exclusion(path, "source", name)
    assert path.read_text() == ""


def test_a_line_that_leads_out_of_the_project_is_named(path: Path) -> None:
    path.write_text("# bought\nsource ../week/a.jsonl\n")
    with pytest.raises(InputError, match=rf"^{path.name} row 2: \.\./week/a\.jsonl lies outside the project: name the"):
        read_exclusions(path)


@pytest.mark.parametrize("place", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_is_not_waited_for(path: Path, place) -> None:
    path.unlink()
    place(path)
    with pytest.raises(InputError, match=r"^exclude\.txt is a pipe, socket or device"):
        read_exclusions(path)


def test_a_line_that_no_name_can_be_is_not_looked_through(path: Path) -> None:
    path.write_text(f"row a\nrow a{' ' * 200_000}b\n")
    with pytest.raises(InputError, match=r"^exclude\.txt row 2 has 200,006 characters: no name is that long"):
        read_exclusions(path)
