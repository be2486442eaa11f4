"""Files as people have them, real and made up: each is taken as it is meant or refused with the way out."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import PREPARED
from tasks.data.records import Kind, read_records
from tasks.prepare import prepare
from tests.test_prepare import PROJECT, metrics, params_with

DATA, CASES = PROJECT / "../shared/data", PROJECT / "../shared/cases/make_cases.py"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files that went wrong once, one a kind."""
    found = importlib.util.spec_from_file_location("make_cases", CASES)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("cases") / "data"
    module.write_data(folder)
    return folder


def prepared(kind: Kind, path: Path, ignore: list[str]) -> dict[str, Any]:
    prepare(params_with(**{kind: {"source": str(path.resolve()), "ignore": ignore}}))
    found: dict[str, Any] = metrics()[kind]
    return found


@pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not here")
@pytest.mark.parametrize(
    ("kind", "file", "ignore", "expected"),
    [
        ("preferences", "json_strings_pair.jsonl", [], {"records": 80}),
        ("preferences", "json_strings.csv", [], {"records": 80}),
        ("demonstrations", "weight0.jsonl", [], {"records": 80}),
        ("demonstrations", "kto.jsonl", [], {"records": 80, "left_out": {"label": 80}}),
        ("prompts", "kto.jsonl", [], {"records": 80, "left_out": {}}),
        ("preferences", "markup.jsonl", [], {"records": 80}),
        ("demonstrations", "tool_calls_text.jsonl", ["tool_calls"], {"records": 80, "ignored": {"tool_calls": 80}}),
        ("demonstrations", "reasoning_content.jsonl", ["reasoning_content"], {"records": 80}),
        ("demonstrations", "tool_calls_text.jsonl", [], {"records": 80}),
        ("demonstrations", "reasoning_content.jsonl", [], {"records": 80, "ignored": {}}),
        ("preferences", "dup_columns.parquet", [], "names the column 'chosen' twice: rename one"),
        ("preferences", "dup_keys.jsonl", [], "80 bad rows: .* names the key 'chosen' twice in one object"),
    ],
)
def test_what_went_wrong_is_understood_or_refused(kind, file, ignore, expected, cases):
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            prepared(kind, cases / file, ignore)
        return
    found = prepared(kind, cases / file, ignore)
    assert expected.items() <= found.items()
    for record in read_records(PREPARED, kind):
        text = json.dumps(record._asdict())
        assert all(sign not in text for sign in ('\\"role\\"', '"response": "WRONG', '"response": "No idea'))


@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not here")
@pytest.mark.parametrize(
    ("kind", "file", "expected"),
    [
        ("preferences", "shapes/dpo_en_demo.json", {"records": 60}),
        ("demonstrations", "shapes/kto_en_demo.json", {"rows_read": 80, "left_out": {"label": 33}, "rows_kept": 47}),
        ("demonstrations", "gsm8k/labelled.jsonl", {"rows_read": 2400, "left_out": {"label": 1494}, "records": 906}),
        ("prompts", "truthfulqa/refs_test.jsonl", {"records": 81, "unused": {"incorrect": 81}}),
        ("prompts", "self_instruct/user_oriented_eval.jsonl", {"records": 252, "unused": {"id": 252}}),
        ("demonstrations", "shapes/glaive_toolcall_en_demo.json", {"rows_read": 60, "records": 200, "rows_kept": 60}),
    ],
)
def test_real_files(kind, file, expected):
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            prepared(kind, DATA / file, [])
    else:
        assert expected.items() <= prepared(kind, DATA / file, []).items()
