"""Columns before their shape is read: what is ignored, and what nothing reads."""

from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.shapes.columns import MOST_COLUMNS, OTHERS, Tally, check_ignored, count_unused, opened
from tasks.settings.params import Source


def source(ignore: list[str] | None = None, **columns: str) -> Source:
    return Source(source="a.jsonl", columns=columns, ignore=ignore or [], limit=None, options={})


def unused(*rows: dict[str, Any], read: tuple[str, ...] = ("prompt",), **given: Any) -> dict[str, int]:
    tally = Tally.empty()
    for row in rows:
        count_unused(row, read, source(**given), tally)
    return dict(tally.unused)


def test_columns_that_nothing_reads_are_counted_by_the_rows_that_have_them():
    assert unused({"prompt": "p", "id": 7, "note": None}, {"prompt": "p", "id": 0, "note": ""}) == {"id": 2}


def test_a_column_counts_by_its_name_in_the_file():
    row = {"prompt": "log", "question": "p", "prompts": "x"}
    assert unused(row, prompt="question") == {"prompt": 1, "prompts": 1}
    assert unused(row, prompt="question", ignore=["prompt"]) == {"prompts": 1}


def test_endless_columns_are_counted_together():
    rows = [{"prompt": "p", f"c{n}": 1, "k" * 1000: 1} for n in range(300)]
    found = unused(*rows)
    assert len(found) == MOST_COLUMNS + 1
    assert found["k" * 100 + "…"] == 300
    assert found[OTHERS] == 300 - (MOST_COLUMNS - 1)


def test_what_is_ignored_is_left_out_of_rows_and_messages_and_counted():
    tally = Tally.empty()
    row = {
        "prompt": "p",
        "label": False,
        "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c", "name": "ann"}],
        "rejected": '{"role": "assistant", "content": "r", "name": "ben", "label": 0}',
        "notes": {"name": "stays, for this is no message that is read"},
    }
    assert opened(row, source(["label", "name", "nowhere"]), tally) == {
        "prompt": "p",
        "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
        "rejected": {"role": "assistant", "content": "r"},
        "notes": row["notes"],
    }
    assert dict(tally.ignored) == {"label": 1, "name": 1}


def test_a_column_cannot_be_read_and_ignored():
    with pytest.raises(InputError, match=r"^prepare\.prompts in params\.yaml names 'q' under ignore and under columns"):
        check_ignored(source(["q"], prompt="q"), "prepare.prompts")
