"""Rows of a file by their number."""

from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.common.files import STATE, read_jsonl, write_jsonl
from tasks.common.lazy import end_to_end, stretches
from tasks.common.lines import Lines, Spool, group_by_key

ROWS = [{"text": "one"}, {"text": "zwölf\nlines"}, {"text": ""}]


def test_rows_are_read_in_any_order(tmp_path: Path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    lines = Lines(tmp_path / "rows.jsonl")
    assert list(lines) == list(read_jsonl(lines.path)) == ROWS
    assert [lines[number] for number in (2, 0, -2)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert list(lines[1:]) == ROWS[1:]


def test_a_damaged_row_is_named(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\nhello\n')
    lines = Lines(tmp_path / "rows.jsonl")
    assert lines[0] == ROWS[0]
    with pytest.raises(InputError, match=r"rows\.jsonl row 2 is damaged"):
        lines[1]
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        Lines(tmp_path / "none.jsonl")


def test_rows_put_aside_come_back_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with Spool() as spool:
        for row in ROWS:
            spool.add(row)
        rows = spool.rows()
        assert [rows[number] for number in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert list(STATE.iterdir()) == []


@pytest.mark.parametrize("sizes", [[], [3], [0, 2, 0, 1, 0]])
def test_stretches_are_what_lies_between_their_ends(sizes):
    text = "abc"
    cut = stretches(sizes, lambda start, end: text[start:end], lambda number, part: (number, part))
    expected = [(0, "abc")] if len(sizes) == 1 else [(0, ""), (1, "ab"), (2, ""), (3, "c"), (4, "")][: len(sizes)]
    assert list(cut) == expected
    assert list(cut[-2:]) == expected[-2:]


def test_sequences_end_to_end_are_one():
    parts = [["a", "b"], [], ["c"], []]
    joined = end_to_end(parts)
    assert list(joined) == ["a", "b", "c"]
    assert (joined[-1], list(joined[1:])) == ("c", ["b", "c"])
    assert list(end_to_end([])) == []


def test_rows_of_one_key_come_together_in_the_order_of_their_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [(key, {"n": number}) for number, key in enumerate([b"b\0", b"a\0", b"b\0", b"a\1", b"a\0"])]
    assert [[row["n"] for row in group] for group in group_by_key(rows)] == [[0, 2], [1, 4], [3]]
    assert list(group_by_key([])) == []
