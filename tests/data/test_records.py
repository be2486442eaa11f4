"""Canonical records: round trips, splits, stable bytes, and rows that are not as they were written."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.records import (
    PAIRS,
    TYPES,
    Demonstration,
    Kind,
    Message,
    Preference,
    Prompt,
    Rating,
    Record,
    Split,
    as_row,
    read_prompts,
    write_records,
)
from tests.conftest import records_of

FOLDER = Path("data/records")
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "train")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=list(TYPES))
def kind(request: pytest.FixtureRequest) -> Kind:
    name: Kind = request.param
    return name


def records(kind: Kind) -> list[Record]:
    """One record a split, and a second one to train on."""
    made: list[Record] = []
    for row, split in enumerate(SPLITS, start=1):
        prompt = [Message(role="system", content="Be kind.\n"), Message(role="user", content=f"Größe {row}? 😀\u2028")]
        name, source = f"{kind}-{row}", "raw.jsonl"
        if kind == "demonstrations":
            made.append(
                Demonstration(name, split, source, row, prompt, f" antwort {row}\t", "ann" if row % 2 else None)
            )
        elif kind in PAIRS:
            made.append(Preference(name, split, source, row, prompt, "better", "", "bob" if row % 2 else None))
        elif kind == "ratings":
            made.append(Rating(name, split, source, row, prompt, "fine", desirable=row % 2 == 0))
        else:
            made.append(
                Prompt(name, split, source, row, prompt, ["one", "another"], "law")
                if row % 2
                else Prompt(name, split, source, row, prompt, [])
            )
    return made


def test_records_come_back(kind):
    write_records(FOLDER, kind, iter(records(kind)))
    assert records_of(FOLDER, kind) == records(kind)
    assert all(isinstance(record, TYPES[kind]) for record in records_of(FOLDER, kind))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_is_read_alone_and_in_order(kind, split):
    write_records(FOLDER, kind, records(kind))
    assert records_of(FOLDER, kind, split) == [record for record in records(kind) if record.split == split]


def test_prompts_are_read_into_a_list():
    write_records(FOLDER, "prompts", records("prompts"))
    assert read_prompts(FOLDER) == records("prompts")
    assert [record.row for record in read_prompts(FOLDER, "train")] == [1, 4]


def test_a_split_without_rows_is_empty(kind):
    write_records(FOLDER, kind, [record for record in records(kind) if record.split == "train"])
    assert records_of(FOLDER, kind, "test") == []


def test_bytes_are_stable(kind):
    write_records(FOLDER, kind, records(kind))
    first = (FOLDER / f"{kind}.jsonl").read_bytes()
    write_records(FOLDER, kind, records_of(FOLDER, kind))
    assert (FOLDER / f"{kind}.jsonl").read_bytes() == first
    assert [path.name for path in FOLDER.iterdir()] == [f"{kind}.jsonl"]


def test_a_line_is_the_record_by_its_field_names(kind):
    write_records(FOLDER, kind, records(kind))
    lines = (FOLDER / f"{kind}.jsonl").read_bytes().decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [as_row(record) for record in records(kind)]
    assert lines[-1] == ""
    assert "Größe 1? 😀" in lines[0]


def test_a_missing_file_says_what_makes_it(kind):
    with pytest.raises(InputError, match=rf"data/records/{kind}\.jsonl does not exist: run the stage that writes it"):
        records_of(FOLDER, kind)


def without_prompt(row: dict[str, Any]) -> object:
    return {name: value for name, value in row.items() if name != "prompt"}


def without_split(row: dict[str, Any]) -> object:
    return {name: value for name, value in row.items() if name != "split"}


def with_a_surplus_field(row: dict[str, Any]) -> object:
    return row | {"score": 1}


def as_a_list(row: dict[str, Any]) -> object:
    return list(row.values())


@pytest.mark.parametrize("split", [None, "test"])
@pytest.mark.parametrize("spoil", [without_prompt, without_split, with_a_surplus_field, as_a_list])
def test_a_row_of_another_shape_is_named(kind, spoil, split):
    write_records(FOLDER, kind, records(kind))
    path = FOLDER / f"{kind}.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[1] = json.dumps(spoil(json.loads(lines[1])))
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{kind}\.jsonl row 2 is damaged: delete the file and run dvc repro"):
        records_of(FOLDER, kind, split)


@pytest.mark.parametrize("damage", [b'{"id": "cut o', b"\xff\n"])
def test_a_damaged_row_is_named(kind, damage):
    write_records(FOLDER, kind, records(kind))
    with (FOLDER / f"{kind}.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(InputError, match=rf"{kind}\.jsonl row 5 is damaged"):
        records_of(FOLDER, kind)
