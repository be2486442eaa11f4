"""What a row says beside the columns of its shape, and rows that are unlike the first."""

import json

import pytest

from tasks.common.errors import InputError
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import recognise, shape_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import Source
from tests.data.shaping import GPT, A, B, S, U, entries, shaped


def test_conversations_written_out_as_text_are_read():
    for write in (json.dumps, str):
        assert entries("demonstrations", {"messages": write([U, A])}) == [{"prompt": [U], "response": "Hello"}]
        assert entries("demonstrations", {"conversations": write(GPT)}) == [{"prompt": [U], "response": "Hello"}]
        pair = {"chosen": write([U, A]), "rejected": write([U, B])}
        for row in (pair, pair | {"prompt": "Hi"}, {"prompt": write([U]), "chosen": write(A), "rejected": write([B])}):
            assert entries("preferences", row) == [{"prompt": [U], "chosen": "Hello", "rejected": "No"}]


def test_an_answer_about_messages_is_refused_unless_it_goes_on_from_the_prompt():
    about = json.dumps([{"role": "user", "content": "Good day"}, A])
    with pytest.raises(InputError, match="an answer that quotes one goes into one message"):
        entries("demonstrations", {"prompt": "Hi", "response": about})
    row = {"prompt": "Hi", "response": {"role": "assistant", "content": about}}
    assert entries("demonstrations", row) == [{"prompt": [U], "response": about}]
    for answer in (f"Here: {about}", f"{about} is it."):
        assert entries("demonstrations", {"prompt": "Hi", "response": answer}) == [{"prompt": [U], "response": answer}]


def test_an_instruction_is_what_it_says_whatever_it_quotes():
    quoted = "Human: Hi\n\nAssistant: Hello"
    row = {"instruction": quoted, "output": json.dumps([A])}
    prompt = [{"role": "user", "content": quoted}]
    assert entries("demonstrations", row) == [{"prompt": prompt, "response": json.dumps([A])}]


def test_an_answer_of_weight_0_is_context_only():
    conversation = [U, B | {"weight": 0}, U, A | {"weight": 1}]
    for row in ({"messages": conversation}, {"messages": conversation, "system": "Be kind."}):
        start = [S] * ("system" in row)
        assert entries("demonstrations", row) == [{"prompt": [*start, U, B, U], "response": "Hello"}]
        assert entries("prompts", row) == [
            {"prompt": [*start, U], "references": []},
            {"prompt": [*start, U, B, U], "references": ["Hello"]},
        ]
    with pytest.raises(
        InputError, match="none of the conversation's answers is to be learned, by their weight or train"
    ):
        entries("demonstrations", {"messages": [U, A | {"train": False}]})


def test_the_column_map_may_name_what_a_row_says_about_itself():
    [row] = shaped("demonstrations", {"prompt": "Hi", "response": "No", "thumbs": "down"}, label="thumbs")
    assert row.left is not None and row.left.reason == "label"


@pytest.mark.parametrize(
    ("kind", "first", "later", "more"),
    [
        ("prompts", {"prompt": "Hi"}, {"prompt": "Hi", "references": ["Hello"]}, "references"),
        ("prompts", {"prompt": "Hi"}, {"prompt": "Hi", "response": "Hello"}, "response"),
        (
            "preferences",
            {"chosen": [U, A], "rejected": [U, B]},
            {"prompt": "Hi", "chosen": "a", "rejected": "b"},
            "prompt",
        ),
        (
            "demonstrations",
            {"messages": [U, A]},
            {"messages": [U, A], "prompt": "Hi", "response": "No"},
            "prompt, response",
        ),
    ],
)
def test_a_row_that_has_more_than_the_first_is_refused(kind, first, later, more):
    message = rf"row 2: it has {more}, which the first row has not \(give all rows the same columns"
    with pytest.raises(InputError, match=message):
        shaped(kind, first, later)
    nothing = dict.fromkeys(later)
    assert len(shaped(kind, first, nothing | first)) == 2
    assert len(shaped(kind, later, nothing | later)) == 2


def test_columns_that_are_ignored_are_no_part_of_a_shape():
    source = Source(source="f.jsonl", columns={}, ignore=["prompt"], limit=None, options={})
    row = {"prompt": "Hi", "response": "No", "messages": [U, A]}
    bad, tally = BadRows("f.jsonl"), Tally.empty()
    raw = [RawRow(1, row), RawRow(2, row)]
    found = list(shape_rows(raw, "demonstrations", source, "f.jsonl", bad=bad, tally=tally))
    assert [each.entries for each in found] == [[{"prompt": [U], "response": "Hello"}]] * 2
    with pytest.raises(
        InputError, match=r"^f\.jsonl has the columns response, but demonstrations need \(prompt, response\)"
    ):
        recognise({"prompt": "Hi", "response": "No"}, "demonstrations", source)


@pytest.mark.parametrize("more", [{"label": "law"}, {"images": ["a.png"]}, {"messages": [U, A | {"thinking": "Hm."}]}])
def test_the_way_out_of_what_is_not_read_is_given_and_leads_out(more):
    row = {"messages": [U, A]} | more
    message = r"\(to leave it out, name it in prepare\.demonstrations\.ignore in params\.yaml\): fix or remove the row$"
    with pytest.raises(InputError, match=message):
        shaped("demonstrations", row)
    source = Source(source="f.jsonl", columns={}, ignore=["label", "images", "thinking"], limit=None, options={})
    bad, tally = BadRows("f.jsonl"), Tally.empty()
    [found] = shape_rows([RawRow(1, row)], "demonstrations", source, "f.jsonl", bad=bad, tally=tally)
    assert found.entries == [{"prompt": [U], "response": "Hello"}]
    assert tally.ignored.total() == 1
