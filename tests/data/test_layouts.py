"""What is no source is refused by its name, and the cure in the message works."""

import re
from pathlib import Path

import datasets
import pandas as pd
import pytest

from tasks.common.errors import InputError
from tasks.common.strict_json import parse_json
from tasks.data.sources.layouts import refuse_layout, refuse_saved_data_set
from tasks.data.sources.source import files_of
from tasks.settings.params import Source
from tests.data.test_sources import fields_of, rows_of

ROWS = [{"prompt": "2+2?", "response": "4"}, {"prompt": "Why?", "response": "So"}]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cure_in(error: InputError, start: str) -> str:
    """The Python that a message gives."""
    [code] = re.findall(rf"{start}\(.*\)", str(error))
    return str(code)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_layouts_of_pandas_are_named_and_the_cure_works(orient, ending):
    pd.DataFrame(ROWS).to_json(f"a.{ending}", orient=orient)
    with pytest.raises(InputError, match=f'^a.{ending} is a table that pandas wrote with orient="{orient}"') as error:
        rows_of(f"a.{ending}")
    Path("out").mkdir()
    eval(cure_in(error.value, "pandas.read_json").replace('to_json("', 'to_json("out/'), {"pandas": pd})
    assert fields_of("out/a.jsonl") == ROWS


def test_values_have_lost_their_columns():
    pd.DataFrame(ROWS).to_json("a.json", orient="values")
    with pytest.raises(InputError, match="which loses the names of its columns"):
        rows_of("a.json")


@pytest.mark.parametrize("orient", ["records", "table"])
def test_layouts_by_rows_are_read_and_in_a_jsonl_file_refused(orient):
    pd.DataFrame(ROWS).to_json("a.json", orient=orient)
    found = [{name: row[name] for name in ("prompt", "response")} for row in fields_of("a.json")]
    assert found == ROWS
    Path("a.json").rename("a.jsonl")
    with pytest.raises(InputError, match=r"^a\.jsonl holds a whole table in its first line: rename it to \.json$"):
        rows_of("a.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        '{"chosen": {"role": "assistant", "content": "a"}, "rejected": {"role": "assistant", "content": "b"}}',
        '{"data": [{"a": 1}]}',
        '{"a": {}}',
        "{}",
        "[]",
        '{"1": "a"}',
    ],
)
def test_what_only_looks_like_one_is_left_alone(content):
    refuse_layout(parse_json(content), Path("a.jsonl"))


def test_a_saved_data_set_is_named_and_the_cure_works():
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    with pytest.raises(InputError, match=r"^saved is a data set that save_to_disk wrote: write it as a file") as error:
        files_of(Source(source="saved", columns={}, ignore=[], limit=None, options={}))
    eval(cure_in(error.value, "load_from_disk"), {"load_from_disk": datasets.load_from_disk})
    assert fields_of("saved.parquet") == ROWS
    [file] = Path("saved").glob("*.arrow")
    with pytest.raises(InputError, match=r"arrow ends in \.arrow, which is not known: write it with datasets") as error:
        rows_of(str(file))
    eval(cure_in(error.value, "Dataset.from_file").split(", or")[0], {"Dataset": datasets.Dataset})
    assert fields_of(f"{file.stem}.parquet") == ROWS


def test_a_saved_data_set_with_splits_is_named_and_the_cure_works():
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk("saved")
    with pytest.raises(InputError, match="wrote, with splits: write each as a file") as error:
        refuse_saved_data_set(Path("saved"))
    eval(cure_in(error.value, "load_from_disk"), {"load_from_disk": datasets.load_from_disk})
    assert fields_of("saved.parquet") == ROWS


@pytest.mark.parametrize(
    ("name", "cure"),
    [("a.jsonl.gz", "unpack it"), ("a.ndjson", "rename it to .jsonl"), ("a.tsv", "with commas as .csv")],
)
def test_other_endings_have_their_cure(name, cure):
    Path(name).write_text("x")
    with pytest.raises(InputError, match=cure):
        rows_of(name)
