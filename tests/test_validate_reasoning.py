"""Marks of reasoning that a tokenizer has as special tokens: in answers they are no control tokens."""

import json
from pathlib import Path

import pytest

from tasks.common.files import read_jsonl, write_jsonl
from tasks.settings.base import Reasoning
from tasks.settings.params import Params
from tasks.validate import validate
from tests.conftest import CHATML, MakeParams
from tests.rows_to_validate import SIDES, byte_level_tokenizer, clean, record

MARKS = Reasoning(start="[THINK]", end="[/THINK]")


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound rows, one with reasoning, and a tokenizer as Mistral's: its marks are special tokens."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_level_tokenizer(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", MARKS.start, MARKS.end]})
    tokenizer.save_pretrained("models/base")
    Path("models/base/config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    for kind in SIDES:
        thoughtful = record(kind, 60, "train", response="[THINK]\n2 and 2\n[/THINK]\n\n4")
        write_jsonl(Path(f"data/prepare/{kind}.jsonl"), clean(kind) + [thoughtful] * (kind == "demonstrations"))
    write_jsonl(Path("data/prepare/ai_preferences.jsonl"), [])


def quarantined(params: Params, marks: Reasoning | None) -> list[tuple[int, list[str]]]:
    base = params.base.model_copy(update={"reasoning": marks})
    validate(params.model_copy(update={"base": base}))
    return [(line["row"], line["reasons"]) for line in read_jsonl(Path("data/validate/quarantine.jsonl"))]


@pytest.mark.slow
def test_the_marks_of_the_settings_belong_into_answers(make_params: MakeParams) -> None:
    params = make_params(validate={"max_tokens": 256})
    assert quarantined(params, MARKS) == []
    assert quarantined(params, None) == [(60, ["control_tokens"])]
