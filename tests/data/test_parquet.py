"""Parquet: names that stand twice, values that Python cannot hold, and small files with endless content."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.common.errors import InputError
from tasks.data.sources import parquet
from tasks.data.sources.raw_rows import BadRows, Unreadable

FILE = Path("a.parquet")
FAR = 2**60  # microseconds: the year 38,500


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows() -> Iterator[dict[str, Any]]:
    return (row.fields for row in parquet.parquet_rows(FILE, BadRows("a.parquet")))


def write(columns: Any, **options: Any) -> None:
    pyarrow.parquet.write_table(pa.table(columns), FILE, **options)


def repeated(value: str, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([value]))


def test_all_kinds_of_columns_are_plain_values():
    columns = {
        "text": pa.array(["a", None]),
        "large": pa.array(["a", "b"], pa.large_string()),
        "view": pa.array(["a", "b"], pa.string_view()),
        "repeated": repeated("a", 2),
        "numbers": pa.array([1, 2]).dictionary_encode(),
        "bytes": pa.array([b"a", b"b"]),
        "list": pa.array([["a"], ["b", "c"]]),
        "fixed": pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)),
        "struct": pa.array([{"a": "1"}, {"a": None}]),
        "messages": pa.array([[{"role": "user", "content": "Hi"}], []]),
        "map": pa.array([[("a", "b")], [("c", "d"), ("e", "f")]], pa.map_(pa.string(), pa.string())),
        "date": pa.array([datetime.date(2020, 1, 1), None]),
        "deep": pa.array([[[["a"]]], [[["b"], []]]]),
        "null": pa.nulls(2),
    }
    write(columns)
    assert list(rows()) == [{name: column[row].as_py() for name, column in columns.items()} for row in range(2)]


def test_a_call_has_its_own_arguments_and_not_those_of_all_calls():
    arguments = [{"city": "Rome", "near": {"km": 3}}, {"order": [{"id": 7}, {"gift": True}]}]
    calls = [[{"function": {"name": "f", "arguments": each}}] for each in arguments]
    write({"messages": [[{"role": "assistant", "tool_calls": call}] for call in calls], "x": [{"a": 1}, {"b": 2}]})
    found = list(rows())
    assert [row["messages"][0]["tool_calls"] for row in found] == calls
    assert [row["x"] for row in found] == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_row_by_row_gives_the_same(monkeypatch):
    write({"a": [str(n) for n in range(10)], "b": [[{"c": [f"{n}"] * n}] for n in range(10)]})
    whole = list(rows())
    monkeypatch.setattr(parquet, "BYTES_AT_ONCE", 0)
    assert list(rows()) == whole


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (lambda: pa.table([pa.array(["a"])] * 2, names=["chosen", "chosen"]), "'chosen'"),
        (
            lambda: {"m": pa.StructArray.from_arrays([pa.array(["a"])] * 2, names=["role", "role"])},
            "'m.role'",
        ),
    ],
)
def test_a_name_that_stands_twice_is_refused(columns, name):
    made = columns()
    pyarrow.parquet.write_table(made if isinstance(made, pa.Table) else pa.table(made), FILE)
    with pytest.raises(InputError, match=rf"^a\.parquet names the column {name} twice: rename one$"):
        list(rows())


def test_a_name_that_stands_twice_in_a_message_is_refused():
    message = pa.StructArray.from_arrays([pa.array(["a"])] * 2, names=["role", "role"])
    write({"m": pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), message)})
    with pytest.raises(InputError, match=r"names the column 'm\.\w+\.role' twice"):
        list(rows())


def test_a_date_out_of_range_harms_nothing_but_itself():
    write(
        {
            "prompt": ["p", "q"],
            "date": pa.array([0, FAR], pa.timestamp("us")),
            "in": pa.array([[{"date": FAR}], []], pa.list_(pa.struct([("date", pa.timestamp("us"))]))),
        }
    )
    first, second = rows()
    assert (first["prompt"], second["prompt"]) == ("p", "q")
    assert (first["date"], second["date"]) == (datetime.datetime(1970, 1, 1), Unreadable("date value out of range"))
    assert (first["in"], second["in"]) == (Unreadable("date value out of range"), [])


def test_nor_does_a_clock_of_nowhere_or_broken_text():
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    write({"prompt": ["p"], "when": pa.array([0], pa.timestamp("us", tz="Mars/Phobos")), "broken": broken})
    [row] = rows()
    assert (row["prompt"], type(row["when"]), type(row["broken"])) == ("p", Unreadable, Unreadable)


def test_a_small_file_of_long_texts_is_refused_before_it_fills_memory():
    write({"chosen": repeated("a" * 5_000_000, 1000)}, compression="zstd")  # 5 GB in two kilobytes
    size = FILE.stat().st_size
    assert size < 2**12
    found = 0
    with pytest.raises(InputError, match=rf"^a\.parquet has {size:,} bytes, and row \d+ would unpack to more") as error:
        for _ in rows():
            found += 1
    assert found == 2**30 // 5_000_050
    assert str(error.value).endswith(
        "(64 MiB a row, and 1 GiB or 1,000 times the file in all): write it again without such values"
    )


def test_a_list_that_repeats_a_long_text_is_refused():
    texts = repeated("a" * 1_000_000, 100)
    write({"prompt": ["p"], "references": pa.ListArray.from_arrays(pa.array([0, 100], pa.int32()), texts)})
    with pytest.raises(InputError, match="and row 1 would unpack to more than is taken"):
        list(rows())


def test_a_page_that_unpacks_to_gigabytes_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 2**20)  # so that the test need not write a gigabyte
    write({"chosen": ["a" * 20_000_000]}, compression="zstd", use_dictionary=False)
    with pytest.raises(InputError, match="and its column 'chosen' would unpack to more than is taken"):
        list(rows())


def test_rows_without_end_are_not_counted_one_by_one(monkeypatch):
    monkeypatch.setattr(parquet, "UNPACKED_BYTES", 2**20)  # so that the test need not write millions
    write({"chosen": repeated("a", 300_000)}, compression="zstd")
    with pytest.raises(InputError, match="and its 300,000 rows would unpack to more than is taken"):
        list(rows())


def test_a_large_value_is_no_harm():
    text = "".join(map(str, range(800_000)))
    write({"chosen": [text, "a", text]})
    assert [row["chosen"] for row in rows()] == [text, "a", text]
