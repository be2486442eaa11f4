"""The tables of shapes in README and docs/data.md: each row goes through `prepare`, from a file of every kind."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from tasks.common.files import PREPARED
from tasks.data.records import Kind, read_records
from tasks.data.shapes.convert import recognise
from tasks.data.shapes.known import SHAPES
from tasks.data.shapes.statements import RATING
from tasks.prepare import prepare
from tasks.settings.params import Source
from tests.conftest import OF_PEOPLE
from tests.test_prepare import PROJECT, params_with

COUNT = 40  # rows of a file: enough for every split
KINDS: dict[str, Kind] = {
    "SFT": "demonstrations",
    "reward, DPO": "preferences",
    "KTO": "ratings",
    "PPO, evaluation": "prompts",
    "Demonstrations:": "demonstrations",
    "Preferences:": "preferences",
    "Ratings:": "ratings",
    "Prompts:": "prompts",
}
ANSWERS: dict[Kind, dict[str, Any]] = {
    "demonstrations": {"response": "4"},
    "preferences": {"chosen": "4", "rejected": "5"},
    "ratings": {"response": "4", "desirable": True},
}
REFERENCES: dict[Kind, list[str]] = {
    "demonstrations": ["4"],
    "preferences": [],
    "ratings": ["4"],
    "prompts": ["4", "four"],
}
Rows = list[dict[str, Any]]


class Example(NamedTuple):
    """A row of a table."""

    kind: Kind
    text: str  # JSON

    def rows(self, of: str) -> Rows:
        """So many that every split has some; their prompts name what file they are of."""
        return [
            json.loads(self.text.replace("2+2?", f"{of}-{n}+2?").replace("Add.", f"Add {of}-{n}."))
            for n in range(COUNT)
        ]


def examples() -> Iterator[Example]:
    """Every example of both files, once."""
    seen = set()
    for file in ("README.md", "docs/data.md"):
        kind: Kind | None = None
        for line in (PROJECT / file).read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.split(" | ")]
            kind = KINDS.get(cells[0].removeprefix("|").strip(), kind)
            found = re.match(r"`(\{.*\})`", cells[-1])
            if line.startswith("|") and found and kind and (kind, found[1]) not in seen:
                seen.add((kind, found[1]))
                yield Example(kind, found[1])
            if line.startswith("#"):
                kind = None


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows))


def write_parquet(path: Path, rows: Rows) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(write: Callable[[object], str], path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(
            {name: value if isinstance(value, str) else write(value) for name, value in row.items()} for row in rows
        )


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "lines.jsonl": write_jsonl,
    "list.json": write_json,
    "table.parquet": write_parquet,
    "json.csv": lambda path, rows: write_csv(json.dumps, path, rows),
    "python.csv": lambda path, rows: write_csv(str, path, rows),
}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def folders_of(example: Example) -> set[Kind]:
    """The kinds that rows of the table are taken as: everything is a prompt, and a pair is two ratings."""
    return {example.kind, "prompts"} | ({"ratings"} if example.kind == "preferences" else set())


def test_every_row_of_the_tables_is_taken_from_every_kind_of_file():
    files: dict[str, Example] = {}
    for kind in OF_PEOPLE:
        Path(kind).mkdir()
    for number, example in enumerate(examples()):
        for name, write in WRITERS.items():
            of = f"{number}{name}"
            for folder in folders_of(example):
                files[f"{folder}/{of}"] = example
                write(Path(folder) / of, example.rows(of))
    folders: dict[str, Any] = {kind: {"source": kind} for kind in OF_PEOPLE}
    folders["ratings"]["threshold"] = 5.0  # for lists with scores
    prepare(params_with(**folders))
    for kind in OF_PEOPLE:
        asked: dict[str, set[str]] = {}
        for record in read_records(PREPARED, kind):
            fields, example = record._asdict(), files[record.source]
            expected = {"references": REFERENCES[example.kind]} if kind == "prompts" else ANSWERS[kind]
            if kind == "prompts" and '"references"' not in example.text and example.kind == "prompts":
                expected = {"references": []}
            if kind == "ratings" and not fields["desirable"]:
                expected = {"response": "5", "desirable": False}
            assert {name: fields[name] for name in expected} == expected, record
            [message] = record.prompt
            asked.setdefault(record.source, set()).add(message["content"])
        assert asked.keys() == {file for file in files if file.startswith(f"{kind}/")}
        for file, prompts in asked.items():
            of = file.removeprefix(f"{kind}/")
            alpaca = {f"Add {of}-{n}.\n\n2 and 2" for n in range(COUNT)}
            assert prompts in ({f"{of}-{n}+2?" for n in range(COUNT)}, alpaca)


def test_every_shape_has_its_row_in_the_tables():
    source = Source(source="a.jsonl", columns={}, ignore=[], limit=None, options={})
    for kind in OF_PEOPLE:
        shapes = SHAPES[kind]
        shown = [recognise(json.loads(each.text), kind, source) for each in examples() if kind in folders_of(each)]
        # A row with a rating in place of its label needs a threshold, which a table of rows does not have.
        missing = [shape.required for shape in shapes if shape not in shown and RATING not in shape.required]
        assert not missing, kind


def test_ai_pairs_have_the_shapes_of_pairs():
    assert SHAPES["ai_preferences"] == SHAPES["preferences"]
