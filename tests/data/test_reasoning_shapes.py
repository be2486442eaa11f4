"""Reasoning in a key of its own: it becomes a part of the answer, and is learned as one."""

from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import PREPARED
from tasks.data.base_model.templates import CHATML
from tasks.data.encoding.encoded import encoded_demonstrations
from tasks.data.reasoning import without_reasoning
from tasks.data.records import Demonstration, Kind, read_records, write_records
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import shape_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.prepare import prepare
from tasks.settings.base import Reasoning
from tasks.settings.params import Source
from tests.conftest import make_tokenizer
from tests.data.test_conversations import assistant, user
from tests.test_prepare import four_sources, params_with, write_rows

MARKS = Reasoning(start="<think>", end="</think>")
THOUGHT = {"reasoning_content": "two\n\nand two"}
WHOLE = "<think>\ntwo\n\nand two\n</think>\n\n4"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


def entries(kind: Kind, row: dict[str, Any], marks: Reasoning | None = MARKS, ignore: list[str] | None = None) -> Any:
    source = Source(source="f.jsonl", columns={}, ignore=ignore or [], limit=None, options={})
    rows, bad = [RawRow(1, row)], BadRows("f.jsonl")
    found = shape_rows(rows, kind, source, "f.jsonl", bad=bad, tally=Tally.empty(), reasoning=marks)
    return [entry for shaped in found for entry in shaped.entries]


def test_it_stands_before_the_answer_and_is_taken_out_of_it_again():
    [entry] = entries("demonstrations", {"messages": [user("2+2?"), assistant("4") | THOUGHT]})
    assert entry == {"prompt": [user("2+2?")], "response": WHOLE}
    assert without_reasoning(entry["response"], MARKS) == "4"


def test_in_every_kind_and_in_history():
    conversation = [user("2+2?"), assistant("4") | THOUGHT, user("Sure?"), assistant("Yes")]
    [first, second] = entries("demonstrations", {"messages": conversation})
    assert (first["response"], second["prompt"][1]) == (WHOLE, assistant(WHOLE))
    row = {"prompt": "2+2?", "chosen": [assistant("4") | THOUGHT], "rejected": [assistant("5")]}
    assert entries("preferences", row) == [{"prompt": [user("2+2?")], "chosen": WHOLE, "rejected": "5"}]
    [prompt] = entries("prompts", {"messages": conversation[:2]})
    assert prompt["references"] == [WHOLE]


def test_marks_are_those_of_the_settings():
    marks = Reasoning(start="[THINK]", end="[/THINK]")
    [entry] = entries("demonstrations", {"messages": [user("u"), assistant("4") | THOUGHT]}, marks)
    assert entry["response"] == "[THINK]\ntwo\n\nand two\n[/THINK]\n\n4"


@pytest.mark.parametrize("content", [None, ""])
def test_before_a_call_without_a_text(content: str | None):
    message = {"role": "assistant", "content": content, "tool_calls": [CALL], **THOUGHT}
    [entry] = entries("demonstrations", {"messages": [user("2+2?"), message]})
    assert entry["response"] == assistant("<think>\ntwo\n\nand two\n</think>") | {"tool_calls": [CALL]}


def test_beside_a_text_in_parts():
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "or four"}]
    [entry] = entries("demonstrations", {"messages": [user("2+2?"), assistant("") | THOUGHT | {"content": parts}]})
    assert entry["response"] == WHOLE + "\nor four"


@pytest.mark.parametrize(
    ("message", "marks", "sentence"),
    [
        (
            assistant("<think>a</think>4") | THOUGHT,
            MARKS,
            "has reasoning_content and <think> or </think> in its content",
        ),
        (assistant("4") | {"reasoning_content": ["a"]}, MARKS, "reasoning_content is a list where a text is needed"),
        (assistant("4") | THOUGHT, None, "holds reasoning_content beside its text, which is not read .*ignore"),
        (
            {"from": "function_call", "value": "{}", **THOUGHT},
            MARKS,
            "holds reasoning_content beside its text, which is not read",
        ),
    ],
)
def test_what_is_refused(message: dict[str, Any], marks: Reasoning | None, sentence: str):
    with pytest.raises(InputError, match=rf"f\.jsonl row 1: .*{sentence}"):
        entries("demonstrations", {"messages": [user("2+2?"), message]}, marks)


def test_of_others_than_the_assistant_it_is_refused():
    with pytest.raises(InputError, match="message 1 of messages holds reasoning_content beside its text"):
        entries("demonstrations", {"messages": [user("2+2?") | THOUGHT, assistant("4")]})


def test_it_can_be_left_out_knowingly():
    row = {"messages": [user("2+2?"), assistant("4") | THOUGHT]}
    assert entries("demonstrations", row, ignore=["reasoning_content"]) == [{"prompt": [user("2+2?")], "response": "4"}]


def test_the_loss_is_on_all_of_it(tmp_path: Path):
    [entry] = entries("demonstrations", {"messages": [user("2+2?"), assistant("4") | THOUGHT]})
    write_records(tmp_path, "demonstrations", [Demonstration("1", "train", "f.jsonl", 1, **entry)])
    tokenizer = make_tokenizer(CHATML)
    [row] = encoded_demonstrations(tmp_path, "train", tokenizer, 512)
    assert tokenizer.decode(row.completion, skip_special_tokens=False) == WHOLE + "<|im_end|>"


def test_prepare_takes_the_marks_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()
    write_rows("thoughts.jsonl", [{"messages": [user(f"{n}?"), assistant("4") | THOUGHT]} for n in range(44)])
    given = params_with(**{**four_sources(), "demonstrations": {"source": "thoughts.jsonl"}})
    marks = given.base.model_copy(update={"reasoning": Reasoning(start="[T]", end="[/T]")})
    prepare(given.model_copy(update={"base": marks}))
    found = {record._asdict()["response"] for record in read_records(PREPARED, "demonstrations")}
    assert found == {"[T]\ntwo\n\nand two\n[/T]\n\n4"}
