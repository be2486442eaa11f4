"""Reading files as people have them: what is taken, and the sentence for each thing that is not."""

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tasks.common.errors import InputError
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.data.sources.source import files_of, identity, read_rows
from tasks.settings.params import Source

ROWS = [{"prompt": "2+2?", "response": "4"}, {"prompt": "Why?", "response": ""}]
REVISION = "0123456789abcdef0123456789abcdef01234567"
POINTER = f"hub: org/name\nrevision: {REVISION}\nsplit: train\n"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(path: str | Source) -> list[RawRow]:
    source = path if isinstance(path, Source) else Source(source=path, columns={}, ignore=[], limit=None, options={})
    bad = BadRows(source.source)
    rows = list(read_rows(source, bad))
    bad.stop()
    return rows


def fields_of(path: str) -> list[dict[str, Any]]:
    return [row.fields for row in rows_of(path)]


def write(path: str, content: str | bytes) -> str:
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_jsonl(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def write_csv(path: str) -> str:
    return write(path, 'prompt,response\n2+2?,4\nWhy?,""\n')


def write_parquet(path: str, rows: list[dict[str, Any]] = ROWS) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# What is taken.


def test_every_format_gives_the_same_fields():
    files = [
        write("a.jsonl", as_jsonl(ROWS)),
        write("list.json", json.dumps(ROWS)),
        write("object.json", json.dumps({"version": 1, "data": ROWS})),
        write_csv("a.csv"),
        write_parquet("a.parquet"),
    ]
    assert [fields_of(file) for file in files] == [ROWS] * len(files)


def test_the_ending_may_be_in_capitals():
    assert fields_of(write("A.JSONL", as_jsonl(ROWS))) == ROWS


def test_row_numbers_are_those_a_person_finds():
    assert [row.row for row in rows_of(write("a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))] == [1, 3]  # lines
    assert [row.row for row in rows_of(write_csv("a.csv"))] == [2, 3]  # the header is row 1
    assert [row.row for row in rows_of(write_parquet("a.parquet"))] == [1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_byte_order_mark_is_no_part_of_the_first_column(name):
    text = {"a.jsonl": as_jsonl(ROWS), "a.csv": "prompt,response\n2+2?,4\nWhy?,\n", "a.json": json.dumps(ROWS)}[name]
    assert fields_of(write(name, b"\xef\xbb\xbf" + text.encode())) == ROWS


def test_windows_line_ends():
    assert fields_of(write("a.jsonl", as_jsonl(ROWS, "\r\n"))) == ROWS
    assert fields_of(write("a.csv", "prompt,response\r\n2+2?,4\r\nWhy?,\r\n")) == ROWS


def test_line_separators_of_unicode_belong_to_the_text():
    rows = [{"prompt": "one\u2028two\u2029three\x85four\x0cfive", "response": "\r"}]
    assert fields_of(write("a.jsonl", as_jsonl(rows))) == rows
    assert fields_of(write("a.csv", 'prompt,response\n"one\u2028two\x85three",x\n')) == [
        {"prompt": "one\u2028two\x85three", "response": "x"}
    ]


def test_csv_fields_may_be_long_and_hold_line_breaks():
    long = "x" * 300_000  # Python's own limit is 131072
    [row] = rows_of(write("a.csv", f'prompt,response\n"a\nb",{long}\n'))
    assert row.fields == {"prompt": "a\nb", "response": long}


def test_parquet_lists_of_structs_are_plain_lists_and_dicts():
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    [fields] = fields_of(write_parquet("a.parquet", rows))
    assert fields == rows[0]
    assert type(fields["messages"]) is list and type(fields["messages"][0]) is dict


def test_nan_in_an_unused_column_does_no_harm():
    assert fields_of(write("a.jsonl", '{"prompt": "p", "score": NaN}\n'))[0]["prompt"] == "p"


def test_a_file_is_known_by_its_bytes_and_a_pointer_also_by_what_it_pins():
    assert identity(Path(write("a.jsonl", b"abc"))) == {"sha256": hashlib.sha256(b"abc").hexdigest()}
    known = identity(Path(write("a.yaml", POINTER)))
    assert known == {"sha256": hashlib.sha256(POINTER.encode()).hexdigest(), "hub": "org/name", "revision": REVISION}


# The hub.


@pytest.fixture
def loaded(monkeypatch):
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path, name=None, *, revision, split):
        calls.append((path, name, revision, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_pointer_loads_the_pinned_revision(loaded):
    assert rows_of(write("set.yaml", POINTER + "config: main\n")) == [RawRow(1, ROWS[0]), RawRow(2, ROWS[1])]
    assert rows_of(write("set.yml", POINTER)) == [RawRow(1, ROWS[0]), RawRow(2, ROWS[1])]
    assert loaded == [("org/name", "main", REVISION, "train"), ("org/name", None, REVISION, "train")]


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ("hub: org/name\nsplit: train\n", "revision must be the full commit hash"),
        (POINTER.replace(REVISION, "main"), "revision must be the full commit hash"),
        (POINTER.replace(REVISION, f"'{REVISION[:7]}'"), "revision must be the full commit hash"),
        (POINTER.replace(REVISION, REVISION[:7]), "put it in quotes if it is text"),  # an octal number in YAML 1.1
        (f"hub: org/name\nrevision: '{REVISION}'\n", "split is missing"),
        (POINTER + "trust: true\n", "trust is not one of"),
        (POINTER.replace("org/name", "json"), "owner/name"),
        ("- a\n", "hub, revision and split"),
        ("", "is empty"),
        ("hub: [\n", "is not valid YAML"),
    ],
)
def test_bad_hub_pointer(loaded, pointer, message):
    with pytest.raises(InputError, match=r"^set\.yaml") as error:
        rows_of(write("set.yaml", pointer))
    assert message in str(error.value)
    assert not loaded


def test_local_folder_must_not_stand_in_for_the_hub(loaded):
    Path("org/name").mkdir(parents=True)
    with pytest.raises(InputError, match="also a local path"):
        rows_of(write("set.yaml", POINTER))
    assert not loaded


@pytest.mark.parametrize(
    "fault", [datasets.exceptions.DatasetNotFoundError("no such set.\nmore"), ValueError('Unknown split "x".')]
)
def test_hub_data_set_that_cannot_be_loaded(monkeypatch, fault):
    def load_dataset(*_, **__):
        raise fault

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"set\.yaml: org/name cannot be loaded \((no such set|Unknown split \"x\")\)"):
        rows_of(write("set.yaml", POINTER))


def test_lost_connection_stays_what_it_is(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError):
        rows_of(write("set.yaml", POINTER))


# What is not taken.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl holds no rows"),
        ("a.jsonl", "\n \n", "a.jsonl holds no rows"),
        ("a.json", "", "a.json holds no rows"),
        ("a.json", "[]", "a.json holds no rows"),
        ("a.csv", "", "a.csv holds no rows"),
        ("a.csv", "prompt,response\n", "a.csv holds no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": "cut o', "a.jsonl row 2 is not valid JSON, perhaps cut off"),
        ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl row 1 is not valid JSON"),
        ("a.jsonl", '[\n{"a": 1},\n{"a": 2}\n]\n', "a.jsonl holds JSON over several lines: rename it to .json"),
        ("a.jsonl", '["a"]\n', "a.jsonl row 1 is not an object"),
        ("a.json", '[{"a": 1}, {"a": ', "a.json line 1 is not valid JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "rename it to .jsonl"),
        ("a.json", '{"a": [1], "b": [2]}', "an object with one list"),
        ("a.json", "7", "a list of objects"),
        ("a.json", '[{"a": 1}, 2]', "a.json row 2 is not an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "a.jsonl row 2 is not UTF-8 text (byte 19 of the file)"),
        ("a.jsonl", b'\xef\xbb\xbf{"a": "\xe9"}\n', "a.jsonl row 1 is not UTF-8 text (byte 10 of the file)"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "a.jsonl row 1 is not UTF-8 text (byte 0 of the file)"),
        ("a.csv", b"a,b\n1,\xfc\n", "a.csv row 2 is not UTF-8 text (byte 6 of the file)"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv row 3 (line 3) has 1 fields where the header has 2"),
        ("a.csv", 'a,b\n"1\n1",2\n3,4,5\n', "a.csv row 3 (line 4) has 3 fields where the header has 2"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv row 2 (line 2) is not valid CSV"),
        ("a.csv", 'a,b\n1,2\n"3"x,4\n', "a.csv row 3 (line 3) is not valid CSV"),
        ("a.jsonl", '{"a": 1}\r{"a": 2}\r', r"a.jsonl row 1 has old Mac line ends (\r alone): convert them, as in tr"),
        ("a.csv", "a,b\r1,2\r3,4\r", r"a.csv row 1 (line 1) has old Mac line ends (\r alone): convert them, as in tr"),
        ("a.csv", '"a","b"\r"1","2"\r', r"a.csv row 1 (line 1) has old Mac line ends (\r alone)"),
        ("a.csv", "a,b\n1,2\n3\r,4\n", r"a.csv row 3 (line 3) holds \r outside of quotes: write all fields in quotes"),
        ("a.csv", "a,a\n1,2\n", "a.csv row 1 names the column 'a' twice"),
        ("a.csv", "a;b\n1;2\n", "separate the columns by commas"),
        ("a.parquet", b"PAR1 no", "a.parquet after row 0 is not valid Parquet"),
        ("a.parquet", b"", "a.parquet after row 0 is not valid Parquet"),
        (
            "a.txt",
            "a",
            "a.txt ends in .txt, which is not known: convert it to .jsonl, .json, .csv, .parquet, .yaml, .yml, or",
        ),
        ("rows", "a", "rows ends in nothing"),
    ],
)
def test_bad_file(name, content, message):
    with pytest.raises(InputError) as error:
        rows_of(write(name, content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_with_damaged_pages():
    path = Path(write_parquet("a.parquet", [{"prompt": f"prompt {n} " * 20} for n in range(500)]))
    content = bytearray(path.read_bytes())
    content[4:2000] = os.urandom(1996)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet after row 0 is not valid Parquet"):
        rows_of("a.parquet")


def test_missing_file():
    with pytest.raises(InputError, match=r"^no/such\.jsonl does not exist: fix the path"):
        rows_of("no/such.jsonl")
    with pytest.raises(InputError, match="does not exist"):
        rows_of(write("file", "") + "/below.csv")


def test_hub_id_in_place_of_a_file():
    with pytest.raises(InputError, match=r"^org/name is no file; if it is a hub data set, write \{hub: org/name"):
        rows_of("org/name")


def files_in(folder: str) -> dict[str, Source]:
    return files_of(Source(source=folder, columns={"prompt": "q"}, ignore=[], limit=5, options={}))


def test_a_folder_is_its_files_by_name_and_a_file_is_itself():
    Path("week").mkdir()
    for name in ("b.csv", "a.jsonl", ".gitignore", "c.yaml"):
        write(f"week/{name}", "")
    found = files_in("week/")
    assert list(found) == [each.source for each in found.values()] == ["week/a.jsonl", "week/b.csv", "week/c.yaml"]
    assert {(each.columns["prompt"], each.limit) for each in found.values()} == {("q", 5)}
    assert files_in("week/a.jsonl") == {"week/a.jsonl": found["week/a.jsonl"]}


def test_a_folder_without_files_or_with_folders():
    Path("week/more.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^week/more\.jsonl is a folder in a folder of files: move its files up"):
        rows_of("week/more.jsonl")
    with pytest.raises(InputError, match=r"^week/more\.jsonl is an empty folder: put \.jsonl, .* files into it$"):
        files_in("week/more.jsonl")


def test_a_folder_of_collected_answers_stands_for_its_pairs_and_says_who_made_them():
    for name in ("round-1", "round-2", "round-3"):
        Path("feedback", name).mkdir(parents=True)
        write(f"feedback/{name}/manifest.json", "{}")
        write(f"feedback/{name}/pairs.jsonl", as_jsonl(ROWS))
    labels = {"policy": {"version": 3}, "annotator": "judge:m", "agreement": {"share": 0.9}, "counts": {}}
    write("feedback/round-1/labels.json", json.dumps(labels))
    write("feedback/round-2/labels.json", "{}")
    write("feedback/more.jsonl", as_jsonl(ROWS))
    # Round 3 is not labelled to its end.
    pairs = [f"feedback/round-{number}/pairs.jsonl" for number in (1, 2)]
    assert list(files_in("feedback")) == ["feedback/more.jsonl", *pairs]
    assert files_in("feedback/round-1").keys() == {pairs[0]}
    found = identity(Path(pairs[0]))
    assert found.pop("sha256") == identity(Path("feedback/more.jsonl"))["sha256"]
    assert found == {name: labels[name] for name in ("policy", "annotator", "agreement")}
    with pytest.raises(InputError, match=r"round-2/labels.json has no 'policy': run trueline label answers feedback/r"):
        identity(Path(pairs[1]))
    with pytest.raises(InputError, match=r"^feedback/round-3 has no labels.json: trueline label answers feedback/rou"):
        files_in("feedback/round-3")


def test_a_pointer_of_dvc_stands_for_what_it_tracks():
    Path("week").mkdir()
    for name in ("a.jsonl", "a.jsonl.dvc", "b.jsonl.dvc"):
        write(f"week/{name}", as_jsonl(ROWS))
    assert list(files_in("week")) == ["week/a.jsonl", "week/b.jsonl"]
    with pytest.raises(InputError, match=r"^week/b\.jsonl does not exist, but .*: run dvc pull week/b\.jsonl\.dvc$"):
        rows_of("week/b.jsonl")


def test_outside_the_project_only_the_name_of_the_source_is_shown(tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "week").mkdir()
    path = write(f"{elsewhere}/week/a.jsonl", as_jsonl(ROWS))
    assert list(files_in(path)) == ["a.jsonl"]
    assert list(files_in(f"{elsewhere}/week/")) == ["week/a.jsonl"]
    assert list(files_in(os.path.relpath(f"{elsewhere}/week"))) == ["week/a.jsonl"]


# What is no file.


def bind_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "a.jsonl is a pipe, socket or device: write its rows to a file"),  # to open it would take for ever
        (bind_socket, "a.jsonl is a pipe, socket or device"),
        (lambda path: Path(path).symlink_to("nothing"), "a.jsonl is a link to nothing: fix or remove the link"),
        (lambda path: Path(path).symlink_to(path), "a.jsonl cannot be read (Too many levels of symbolic links)"),
    ],
)
def test_only_regular_files_are_read(make, message):
    make("a.jsonl")
    with pytest.raises(InputError) as error:
        rows_of("a.jsonl")
    assert str(error.value).startswith(message)


def test_a_name_that_no_file_can_have():
    with pytest.raises(InputError, match=r"^x+\.jsonl cannot be read \(File name too long\): fix its name"):
        rows_of("x" * 300 + ".jsonl")
    assert list(files_in("x" * 300)) == ["x" * 300]


def test_a_name_that_is_not_utf8_is_refused():
    Path("week").mkdir()
    Path(os.fsdecode(b"week/caf\xe9.jsonl")).write_text(as_jsonl(ROWS))
    [file] = files_in("week").values()
    with pytest.raises(InputError, match=r"^the name 'week/caf\\udce9\.jsonl' is not UTF-8: rename the file$"):
        rows_of(file)


def test_file_that_may_not_be_read(monkeypatch):
    def refuse(*_, **__):  # by hand: for root, whom tests may run as, no mode is too strict
        raise PermissionError

    write("a.jsonl", as_jsonl(ROWS))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^a\.jsonl may not be read: grant read permission"):
        rows_of("a.jsonl")
