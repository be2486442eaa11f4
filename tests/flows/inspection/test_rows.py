"""A row as `trueline doctor --row` shows it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.display.results import show_rows
from flows.inspection.rows import examine_row
from tasks.common.errors import InputError
from tasks.common.files import MODELS, PREPARED, STATE, VALIDATED, write_jsonl
from tasks.data.base_model.templates import CHATML
from tasks.data.encoding.tokens import encode, encode_prompt, load_tokenizer
from tests.calls import ASKED as USER
from tests.calls import CALLED, RESULT, TOOL

ASKED = [{"role": "user", "content": "send it"}]
PLACE = {"split": "train", "source": "rows.jsonl", "row": 3}
DEMONSTRATION = {"id": "d", **PLACE, "prompt": ASKED, "response": "the order"}
PAIR = {"id": "p", **PLACE, "prompt": ASKED, "chosen": "the order", "rejected": "it"}
PROMPT = {"id": "q", **PLACE, "prompt": ASKED, "references": ["the order"]}


@pytest.fixture(autouse=True)
def checkout(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, MODELS / "base")
    write_jsonl(PREPARED / "demonstrations.jsonl", [DEMONSTRATION])
    write_jsonl(PREPARED / "preferences.jsonl", [PAIR])
    write_jsonl(PREPARED / "prompts.jsonl", [PROMPT])


def ids(part: Any, *, learned: bool) -> list[int]:
    return [token["id"] for token in part["tokens"] if token["learned"] == learned]


def test_the_mask_is_that_of_training() -> None:
    tokenizer = load_tokenizer(MODELS / "base")
    for row_id, answers in {"d": {"response": "the order"}, "p": {"chosen": "the order", "rejected": "it"}}.items():
        [row] = examine_row(row_id)
        assert [part["part"] for part in row["parts"]] == list(answers)
        for part, answer in zip(row["parts"], answers.values(), strict=True):
            encoded = encode(tokenizer, ASKED, answer)  # type: ignore[arg-type]
            assert (ids(part, learned=False), ids(part, learned=True)) == tuple(encoded)
            assert tokenizer(part["text"], add_special_tokens=False)["input_ids"] == [
                *encoded.prompt,
                *encoded.completion,
            ]
    [row] = examine_row("q")
    assert ids(row["parts"][0], learned=False) == encode_prompt(tokenizer, ASKED)  # type: ignore[arg-type]
    assert not ids(row["parts"][0], learned=True)


@pytest.mark.parametrize("folder", [VALIDATED, STATE])
def test_a_row_in_quarantine_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"file": "demonstrations.jsonl", "id": "d", "reasons": ["length", "lost_system"]}
    found = {"lost_system": "the chat template leaves out the system text", "template": None}
    write_jsonl(folder / "quarantine.jsonl", [line | {"found": found, "record": DEMONSTRATION}])
    [row] = examine_row("d")
    assert row["quarantined"] == ["length", "lost_system"]
    assert row["found"] == {"lost_system": "the chat template leaves out the system text"}
    show_rows([row])
    assert "In quarantine: lost_system (the chat template leaves out the system text)" in capsys.readouterr().out


def test_a_truncated_answer_is_shown_as_it_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(VALIDATED / "preferences.jsonl", [PAIR | {"chosen": "the", "truncated": {"chosen": 4}}])
    [row] = examine_row("p")
    assert row["truncated"] == {"chosen": 4}
    assert [part["text"].endswith("<|im_end|>") for part in row["parts"]] == [False, True]
    assert [part["tokens"][-1]["text"] == "<|im_end|>" for part in row["parts"]] == [False, True]
    show_rows([row])
    assert "Truncated: chosen lost 4 tokens" in capsys.readouterr().out


def test_what_the_template_refuses_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    (MODELS / "base/chat_template.jinja").write_text("{{ raise_exception('no') }}")
    [row] = examine_row("d")
    assert "refuses the conversation (no)" in row["parts"][0]["refused"]
    show_rows([row])
    assert "Refused: the chat template refuses" in capsys.readouterr().out


def test_a_call_is_shown_as_it_is_learned() -> None:
    (MODELS / "base/chat_template.jinja").write_text(CHATML)
    row = DEMONSTRATION | {"prompt": [{**USER, "tools": [TOOL]}, CALLED, RESULT], "response": CALLED}
    write_jsonl(PREPARED / "demonstrations.jsonl", [row])
    [found] = examine_row("d")
    [part] = found["parts"]
    call = '<tool_call>\n{"name": "track", "arguments": {"order": 7}}\n</tool_call><|im_end|>'
    result = "\n<|im_start|>tool\n<tool_response>\non its way\n</tool_response><|im_end|>\n"
    asked = "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    assert part["text"].endswith(f"{asked}{call}{result}<|im_start|>assistant\n{call}")
    assert "<tools>\n" + json.dumps(TOOL) in part["text"]
    tokenizer = load_tokenizer(MODELS / "base")
    assert tokenizer.decode(ids(part, learned=True)) == call
    assert part["text"] == tokenizer.decode([*ids(part, learned=False), *ids(part, learned=True)])


def test_people_read_text_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    rows = examine_row("d")
    show_rows(rows)
    shown = capsys.readouterr().out
    assert "demonstrations, train: rows.jsonl row 3" in shown
    assert "<|im_start|>user\nsend it<|im_end|>\n<|im_start|>assistant\nthe order<|im_end|>\n" in shown
    assert "yes" in shown
    assert json.loads(json.dumps(rows)) == rows


def test_an_id_that_nobody_has_and_a_base_that_is_missing_are_said() -> None:
    with pytest.raises(InputError, match="has the id 'x': take one from a file there"):
        examine_row("x")
    shutil.rmtree(MODELS / "base")
    with pytest.raises(InputError, match=r"models/base does not exist: run the stage that writes it"):
        examine_row("d")
