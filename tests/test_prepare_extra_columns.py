"""Extra columns of a prompt's row: from any source, by the names that rewards know, to the records that stages read."""

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks.common.errors import InputError
from tasks.common.files import METRICS, PREPARED
from tasks.data.checks.schema import inspect
from tasks.data.extra_columns import DEEPEST, LARGEST
from tasks.data.records import read_prompts
from tasks.prepare import LEFT_OUT, prepare
from tests.test_prepare import four_sources, params_with, write_rows

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"
COUNT = 30


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def rows(**others: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{n} + 1?", "key": str(n + 1), "level": "easy", **others} for n in range(COUNT)]


def write(ending: str, content: list[dict[str, Any]]) -> str:
    path = f"sums.{ending}"
    if ending == "jsonl":
        write_rows(path, content)
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    return path


def prepared(source: str, extra: dict[str, str], **changes: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """The extra columns of every prompt, by its source and row."""
    settings = {"source": source, "extra_columns": extra, **changes}
    prepare(params_with(**{**four_sources(), "prompts": settings}))
    return {(record.source, record.row): record.columns for record in read_prompts(PREPARED)}


def test_what_a_python_source_reads_is_known_by_its_hash():
    Path("own.py").write_text(
        "from pathlib import Path\n"
        "def prompts(seed, options):\n"
        "    for line in Path(options['file']).read_text().splitlines():\n"
        "        yield {'prompt': line}\n"
    )
    Path("words").mkdir()

    def known(text: str) -> str:
        Path("words/a.txt").write_text("".join(f"{text} {n}\n" for n in range(COUNT)))
        prompts = {"source": "own.py", "options": {"file": "words/a.txt"}}
        given = params_with(**{**four_sources(), "prompts": prompts})
        prepare(given.model_copy(update={"prepare": given.prepare.model_copy(update={"data": "words"})}))
        assert "data_sha256" not in json.loads((METRICS / "prepare.json").read_text())["ratings"]["sources"]["t.jsonl"]
        found: str = figures()["sources"]["own.py"]["data_sha256"]
        return found

    assert known("a") == known("a") != known("b")


def figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((METRICS / "prepare.json").read_text())["prompts"]
    return found


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_columns_come_by_the_names_of_the_map_from_every_kind_of_file(ending: str) -> None:
    found = prepared(write(ending, rows()), {"answer": "key"})
    first = 2 if ending == "csv" else 1  # the row of a spreadsheet, whose header is row 1
    assert found == {(f"sums.{ending}", n + first): {"answer": str(n + 1)} for n in range(COUNT)}
    assert figures()["unused"] == {"level": COUNT}  # and the column that is read is not among them


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_lists_objects_and_numbers_stay_what_they_are(ending: str) -> None:
    value = {"words": ["a", "ü😀"], "most": 3, "share": 0.5, "strict": True, "none": None}
    found = prepared(write(ending, rows(rule=value)), {"constraints": "rule"})
    assert list(found.values()) == [{"constraints": value}] * COUNT


def test_ids_and_splits_do_not_depend_on_them_and_without_any_the_bytes_are_as_before() -> None:
    source = write("jsonl", rows())
    prepared(source, {})
    without = (PREPARED / "prompts.jsonl").read_text().splitlines()
    assert not any('"columns"' in line for line in without)
    prepared(source, {"answer": "key"})
    lines = (PREPARED / "prompts.jsonl").read_text().splitlines()
    assert [line.rpartition(', "columns"')[0] + "}" for line in lines] == without


def test_a_column_may_be_a_field_of_ours_too() -> None:
    source = write("jsonl", [{"question": f"{n}?", "answer": f"{n}!"} for n in range(COUNT)])
    found = prepared(source, {"key": "answer"}, columns={"prompt": "question", "references": "answer"})
    assert [columns["key"] for columns in found.values()] == [f"{n}!" for n in range(COUNT)]
    assert [record.references for record in read_prompts(PREPARED)] == [[f"{n}!"] for n in range(COUNT)]


@pytest.mark.parametrize("nothing", [None, "", [], {}, float("nan")])
def test_what_says_nothing_is_left_out(nothing: object) -> None:
    assert set(map(str, prepared(write("jsonl", rows(hint=nothing)), {"hint": "hint"}).values())) == {"{}"}


def test_a_column_for_rewards_says_nothing_about_the_row() -> None:
    content = rows(label="no", weight=0, tools=["search"])
    assert len(prepared(write("jsonl", content), {each: each for each in ("label", "weight", "tools")})) == COUNT
    assert read_prompts(PREPARED)[0].columns == {"label": "no", "weight": 0, "tools": ["search"]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), r"holds inf, which is no JSON"),
        ([[float("nan")]], r"holds nan, which is no JSON"),
        (2**65, r"holds a whole number of more than 64 bits"),
        ("\ud800", r"holds half a character"),
        ({"a": "\ud800"}, r"holds half a character"),
        ("a" * LARGEST, r"have 1,\d+,\d+ bytes, more than the 1,048,576 of a row's extra columns"),
    ],
)
def test_what_is_no_json_or_too_large_is_refused_with_file_and_row(value: object, message: str) -> None:
    content = rows()
    content[4]["key"] = value
    with pytest.raises(InputError, match=rf"^sums\.jsonl row 5: the extra column answer {message}.*: fix or remove"):
        prepared(write("jsonl", content), {"answer": "key"})


def test_depth_is_bounded() -> None:
    value: object = "x"
    for _ in range(DEEPEST):
        value = [value]
    with pytest.raises(InputError, match=rf"answer nests more than {DEEPEST} lists and objects"):
        prepared(write("jsonl", rows(rule=value)), {"answer": "rule"})


def test_values_that_only_parquet_has_are_refused() -> None:
    content = rows(day=datetime.date(2026, 1, 2))
    with pytest.raises(
        InputError, match=r"sums\.parquet has 30 bad rows: .*: the extra column day holds a value of the"
    ):
        prepared(write("parquet", content), {"day": "day"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"extra_columns": {"answer": "keys"}},
            r"prepare\.prompts\.extra_columns in params\.yaml maps answer to 'k",
        ),
        ({"extra_columns": {"answer": "key"}, "ignore": ["key"]}, r"names 'key' under ignore and under extra_columns"),
        ({"extra_columns": {"the answer": "key"}}, r"prepare\.prompts\.extra_columns.*the answer"),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(write("jsonl", rows()), changes.pop("extra_columns"), **changes)


def test_one_prompt_in_several_rows_has_the_columns_of_all() -> None:
    content = [*rows(hint=None), {"prompt": "0 + 1?", "key": "1", "hint": "count"}]
    found = prepared(write("jsonl", content), {"answer": "key", "hint": "hint"})
    assert found["sums.jsonl", 1] == {"answer": "1", "hint": "count"}
    assert len(found) == COUNT
    assert figures()["left_out"] == {}


@pytest.mark.parametrize(("first", "other"), [("1", "2"), ("1", 1), (1, 1.0), (1, True), ([1], [1, 1])])
def test_a_prompt_whose_rows_differ_in_a_column_is_left_out_with_all_its_rows(first: object, other: object) -> None:
    content = [*rows(), {"prompt": "0 + 1?", "key": other}, {"prompt": "0 + 1?", "key": first}]
    content[0]["key"] = first
    found = prepared(write("jsonl", content), {"answer": "key"})
    assert len(found) == COUNT - 1
    assert not any(row in (1, 31, 32) for _, row in found)
    assert figures()["left_out"] == {"different_columns": 3}
    lines = [json.loads(line) for line in (PREPARED / LEFT_OUT).read_text().splitlines()]
    assert [(line["file"], line["row"], line["reason"], line["detail"]) for line in lines] == [
        ("prompts.jsonl", row, "different_columns", "rows of one prompt differ in answer") for row in (1, 31, 32)
    ]


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"answer": ["4"]}, None),
        ({}, None),
        (["4"], "columns is not an object"),
        ({"answer": float("nan")}, "the extra column answer holds nan, which is no JSON"),
    ],
)
def test_validate_looks_at_their_shape(columns: object, fault: str | None) -> None:
    prepared(write("jsonl", rows()), {})
    record = read_prompts(PREPARED)[0]._asdict() | {"columns": columns}
    assert inspect("prompts", record).fault == fault


@pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is absent")
def test_the_answer_key_of_gsm8k() -> None:
    path, columns = GSM8K / "qa_test.jsonl", {"prompt": "question", "references": "solution"}
    found = prepared(str(path), {"answer_key": "answer"}, columns=columns)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert found == {
        ("qa_test.jsonl", row): {"answer_key": json.loads(line)["answer"]} for row, line in enumerate(lines, start=1)
    }
