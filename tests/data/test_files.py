"""Files are written whole or not at all, with the same bytes every time, and read back or refused with their row."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.common.errors import InputError
from tasks.common.files import (
    IN_USE,
    hash_files,
    names_path_in,
    read_json,
    read_jsonl,
    replacing,
    write_json,
    write_jsonl,
)

OUTPUT = Path("outputs/result")
ROOT = Path(__file__).parents[2]
TEXT = st.text(st.characters(codec=None), max_size=20)  # half surrogate pairs too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(path: Path, kind: str, text: str) -> None:
    """A file, or a folder with a file in a folder."""
    if kind == "folder":
        (path / "inner").mkdir(parents=True)
        path /= "inner/content.txt"
    path.write_text(text)


def tree(folder: Path = Path()) -> dict[str, bytes | None]:
    """Everything in a folder, hidden things too."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(params=["file", "folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_first_is_written_with_the_folders_above_it(kind):
    with replacing(OUTPUT) as draft:
        make(draft, kind, "new")
        assert not OUTPUT.exists()
    assert [path.name for path in OUTPUT.parent.iterdir()] == ["result"]
    assert OUTPUT.is_dir() == (kind == "folder")


def test_a_later_one_takes_its_place(kind):
    with replacing(OUTPUT) as draft:
        make(draft, kind, "old")
    if kind == "folder":
        (OUTPUT / "left over").touch()
    old = tree()
    with replacing(OUTPUT) as draft:
        make(draft, kind, "new")
        assert tree().items() >= old.items()
    assert b"new" in tree().values()
    assert b"old" not in tree().values()
    assert not (OUTPUT / "left over").exists()
    assert [path.name for path in OUTPUT.parent.iterdir()] == ["result"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_an_exception_leaves_the_old_one_and_nothing_else(kind, error):
    with replacing(OUTPUT) as draft:
        make(draft, kind, "old")
    before = tree()
    with pytest.raises(type(error)), replacing(OUTPUT) as draft:
        make(draft, kind, "half")
        raise error
    assert tree() == before


def test_an_exception_at_the_first_leaves_nothing(kind):
    with pytest.raises(ValueError, match="a bug"), replacing(OUTPUT) as draft:
        make(draft, kind, "half")
        raise ValueError("a bug")
    assert list(OUTPUT.parent.iterdir()) == []


def test_an_old_folder_that_cannot_be_moved_stays_whole(monkeypatch):
    make(OUTPUT, "folder", "old")
    before = tree()

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), replacing(OUTPUT) as draft:
        make(draft, "folder", "new")
    assert tree() == before


def test_the_old_folder_is_not_deleted_before_the_new_one_is_there(monkeypatch):
    make(OUTPUT, "folder", "old")
    contents = []

    def deleting(path: Path, ignore_errors: bool) -> None:
        contents.append((OUTPUT / "inner/content.txt").read_text())
        delete(path, ignore_errors)

    delete = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", deleting)
    with replacing(OUTPUT) as draft:
        make(draft, "folder", "new")
    assert contents == ["new"]


LEAVES = """
import os, sys
from pathlib import Path
from tasks.common.files import replacing
with replacing(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os._exit(9)
"""


def abandoned(path: Path) -> Path:
    """What a process that was killed leaves beside a path."""
    subprocess.run([sys.executable, "-c", LEAVES, path], check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    [folder] = path.parent.glob(f".{path.name}.*")
    assert (folder / path.name).read_text() == "half"
    os.utime(folder / IN_USE, (0, 0))
    return folder


def test_what_a_killed_process_left_is_removed(tmp_path):
    left, own = abandoned(tmp_path / "out"), tmp_path / ".out.settings"
    own.mkdir()
    write_json(tmp_path / "other", {})
    assert left.exists()
    write_json(tmp_path / "out", {})
    assert not left.exists()
    assert own.exists()  # nobody's draft


def test_a_draft_that_is_being_written_stays(tmp_path):
    path = tmp_path / "out"
    with replacing(path) as draft:
        draft.write_text("first")
        os.utime(draft.parent / IN_USE, (0, 0))
        write_json(path, {})
        assert draft.read_text() == "first"
    assert path.read_text() == "first"


def test_a_draft_whose_lock_may_not_be_taken_yet_stays(tmp_path):
    left = abandoned(tmp_path / "out")
    os.utime(left / IN_USE)
    write_json(tmp_path / "out", {})
    assert left.exists()


@pytest.mark.parametrize("made", [lambda path: path.touch(), lambda path: path.mkdir()], ids=["file", "folder"])
def test_others_may_read_what_is_written(made):
    with replacing(OUTPUT) as draft:
        made(draft)
    mask = os.umask(0)
    os.umask(mask)
    whole = 0o777 if OUTPUT.is_dir() else 0o666
    assert stat.S_IMODE(OUTPUT.stat().st_mode) == whole & ~mask


def test_json_is_indented_ends_in_a_line_feed_and_keeps_its_order():
    write_json(OUTPUT, {"b": 1, "a": "ü"})
    assert OUTPUT.read_bytes() == '{\n  "b": 1,\n  "a": "ü"\n}\n'.encode()


def test_jsonl_is_an_object_a_line():
    write_jsonl(OUTPUT, [{"b": 1, "a": "ü\n\u2028"}, {}])
    assert OUTPUT.read_bytes() == '{"b": 1, "a": "ü\\n\u2028"}\n{}\n'.encode()


def test_half_a_surrogate_pair_stays_as_its_escape():
    write_json(OUTPUT, {"text": "\ud83d"})
    assert b'"\\ud83d"' in OUTPUT.read_bytes()
    write_jsonl(OUTPUT, [{"text": "\ud83d"}])
    assert OUTPUT.read_bytes() == b'{"text": "\\ud83d"}\n'


@pytest.mark.slow
@given(OBJECTS)
def test_json_comes_back(content):
    write_json(OUTPUT, content)
    first = OUTPUT.read_bytes()
    assert read_json(OUTPUT) == joined(content)
    write_json(OUTPUT, content)
    assert OUTPUT.read_bytes() == first


@given(st.lists(OBJECTS, max_size=4))
def test_jsonl_comes_back(rows):
    write_jsonl(OUTPUT, iter(rows))
    first = OUTPUT.read_bytes()
    assert list(read_jsonl(OUTPUT)) == joined(rows)
    write_jsonl(OUTPUT, rows)
    assert OUTPUT.read_bytes() == first


def joined(content):
    """Two halves of a surrogate pair that stand together are one character in JSON."""
    return json.loads(json.dumps(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_not_written(value):
    write_json(OUTPUT, {"loss": 1.0})
    before = tree()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(OUTPUT, {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(OUTPUT, [{"loss": 2.0}, {"loss": value}])
    assert tree() == before


def test_a_row_that_fails_leaves_the_old_rows():
    def rows():
        yield {"row": 1}
        raise InputError("raw.jsonl row 2 is damaged: fix it")

    write_jsonl(OUTPUT, [{"row": 0}])
    before = tree()
    with pytest.raises(InputError, match="row 2"):
        write_jsonl(OUTPUT, rows())
    assert tree() == before


def test_a_missing_file_says_what_makes_it():
    message = r"^outputs/result does not exist: run the stage that writes it \(dvc repro\)$"
    with pytest.raises(InputError, match=message):
        read_json(OUTPUT)
    with pytest.raises(InputError, match=message):
        next(read_jsonl(OUTPUT))


@pytest.mark.parametrize("content", [b"", b'{"loss": ', b"[1]", b"null", b'{"text": "\xff"}'])
def test_damaged_json_is_refused(content):
    Path("metrics.json").write_bytes(content)
    with pytest.raises(InputError, match=r"^metrics\.json is damaged: delete it and run dvc repro$"):
        read_json(Path("metrics.json"))


@pytest.mark.parametrize("row", [b'{"prompt": "cut o', b"", b"[1]", b"3", b"null", b'{"text": "\xff"}'])
def test_a_damaged_row_is_named_and_rows_before_it_are_read(row):
    Path("rows.jsonl").write_bytes(b'{"prompt": "q"}\n' + row + b"\n")
    rows = read_jsonl(Path("rows.jsonl"))
    assert next(rows) == {"prompt": "q"}
    with pytest.raises(InputError, match=r"^rows\.jsonl row 2 is damaged: delete the file and run dvc repro$"):
        next(rows)


def test_an_empty_file_has_no_rows():
    Path("rows.jsonl").touch()
    assert list(read_jsonl(Path("rows.jsonl"))) == []


def test_a_hash_follows_names_and_contents():
    found = []
    for name, text in [("a", "x"), ("b", "x"), ("a", "y"), ("inner/a", "x")]:
        Path("folder", name).parent.mkdir(parents=True)
        Path("folder", name).write_text(text)
        found.append(hash_files(Path("folder")))
        assert hash_files(Path("folder")) == found[-1]
        shutil.rmtree("folder")
    assert len(set(found)) == 4
    Path("a").write_text("x")
    assert hash_files(Path("a")) == hash_files(Path("a").resolve())  # wherever it lies


def test_paths_in_options_are_found_at_any_depth_however_they_are_written(tmp_path: Path) -> None:
    place = Path("data")
    found: list[object] = ["data", "./data/", "data/a.txt", str(tmp_path / "data/a"), {"a": [{"b": "data"}]}]
    assert all(names_path_in(value, place) for value in found)
    others: list[object] = ["database", "other/data", "..", None, 7, True, ["a", {"data": "b"}], {}]
    assert not any(names_path_in(value, place) for value in others)
