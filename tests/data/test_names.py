"""Whatever way a name is spelt, it is one name."""

from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.data.names import as_name, name_in_outputs, shown_name, source_asked_for, stands_for


@pytest.fixture
def elsewhere(tmp_path, tmp_path_factory, monkeypatch):
    """A folder outside the project, with a link back to it."""
    monkeypatch.chdir(tmp_path)
    folder: Path = tmp_path_factory.mktemp("elsewhere")
    (folder / "link").symlink_to(Path.cwd())
    return folder


def test_a_name_is_the_same_however_its_path_is_spelt(elsewhere):
    here = Path.cwd()
    spelt = [
        "raw/a.jsonl",
        "./raw//a.jsonl",
        "raw/",
        f"{here}/raw/a.jsonl",
        f"../{here.name}/raw/a.jsonl",
        "raw/../raw",
    ]
    named = ["raw/a.jsonl", "raw/a.jsonl", "raw", "raw/a.jsonl", "raw/a.jsonl", "raw"]
    assert [name_in_outputs(path) for path in spelt] == named
    assert name_in_outputs(f"{elsewhere}/link/raw/a.jsonl") == "raw/a.jsonl"  # a link may lead to the project
    Path("raw").symlink_to(elsewhere)
    assert name_in_outputs("raw/a.jsonl") == "raw/a.jsonl"  # or out of it


def test_a_path_out_of_the_project_is_no_name_of_a_source(elsewhere):
    assert [source_asked_for(name) for name in ("raw//a.jsonl", "week/a.jsonl", str(Path("raw").absolute()))] == [
        "raw/a.jsonl", "week/a.jsonl", "raw"
    ]  # fmt: skip
    for path in (f"{elsewhere}/week/a.jsonl", "../week/a.jsonl"):
        with pytest.raises(InputError, match=r"a\.jsonl lies outside the project: name the source as the rows do"):
            source_asked_for(path)


def test_a_folder_stands_for_its_files():
    assert [stands_for(name, "raw/week/a.jsonl") for name in ("raw", "raw/week", "raw/week/a.jsonl")] == [True] * 3
    assert [stands_for(name, "raw/week/a.jsonl") for name in ("raw/we", "week", "raw/week/a.jsonl/b")] == [False] * 3


@pytest.mark.parametrize("text", ["Ann Zo\u00e9", " Ann \n Zoe\u0301", "Ann\u2028Zo\u00e9"])
def test_white_space_and_how_an_accent_is_written_make_no_other_name(text):
    assert (shown_name(text), as_name(text)) == ("Ann Zo\u00e9", "ann zo\u00e9")


ONE_PERSON = [
    "Bob 7",
    "BOB 7",
    "B\u200bo\u200db\ufeff 7",
    "\u202eBob\u202c\u200f 7",
    "\uff22\uff4f\uff42\u3000\uff17",
    "B\u00adob\xa07\x1b",
]


@pytest.mark.parametrize("text", ONE_PERSON)
def test_what_no_reader_tells_apart_is_one_name(text):
    assert as_name(text) == "bob 7"
    assert shown_name(text).casefold() == "bob 7"


def test_a_name_that_nobody_sees_is_none():
    assert as_name("\u200b \u202e\ufeff\x00") == shown_name("\u3164\u2060") == ""


@pytest.mark.slow
def test_a_name_that_is_spelt_stays_as_it_is():
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    assert [each for each in points if as_name(as_name(f"{each}\u0301")) != as_name(f"{each}\u0301")] == []


def test_a_whole_number_is_one_name_however_it_is_written():
    assert [as_name(text) for text in ("3", " 3.0", "-3.00", "3.5", "v3.0", "3.", "03")] == [
        "3", "3", "-3", "3.5", "v3.0", "3.", "03"
    ]  # fmt: skip
