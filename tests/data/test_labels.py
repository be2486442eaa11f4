"""Two answers and a label: every value that is taken, and that nothing else is."""

from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.records import Kind
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import ShapedRow, shape_rows
from tasks.data.shapes.labels import ANSWER_PAIRS, INDICES, LABELS, TRUTHS
from tasks.data.shapes.values import shown_value
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import Source

OUTCOMES = {"first": ("good", "bad"), "second": ("bad", "good"), "tie": ("good", "bad")}


def shaped(fields: dict[str, Any], kind: Kind = "preferences", /, **columns: str) -> ShapedRow:
    source = Source(source="f.jsonl", columns=columns, ignore=[], limit=None, options={})
    bad, tally = BadRows("f.jsonl"), Tally.empty()
    [row] = shape_rows([RawRow(7, fields)], kind, source, "f.jsonl", bad=bad, tally=tally)
    return row


def outcome(label: dict[str, Any], **columns: str) -> tuple[str, str, bool]:
    row = shaped({"prompt": "Hi", "response_a": "good", "response_b": "bad", **label}, **columns)
    [entry] = row.entries
    assert entry["prompt"] == [{"role": "user", "content": "Hi"}]
    assert entry.keys() == {"prompt", "chosen", "rejected"}
    return entry["chosen"], entry["rejected"], row.tied


@pytest.mark.parametrize(
    ("label", "preferred"),
    [
        *(({"preference": word.upper()}, preferred) for word, preferred in LABELS.items()),
        *(({"winner": f" {word}\n"}, preferred) for word, preferred in LABELS.items()),
        *(({"preferred_index": int(word)}, preferred) for word, preferred in INDICES.items()),
        *(({"first_preferred": word}, preferred) for word, preferred in TRUTHS.items()),
        ({"preference": 1}, "first"),
        ({"preference": 2.0}, "second"),  # as pandas has it where others are null
        ({"preference": 1.5}, "tie"),
        ({"first_preferred": True}, "first"),
        ({"first_preferred": False}, "second"),
        ({"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, "first"),
        ({"winner_model_a": "0", "winner_model_b": "1", "winner_tie": "0"}, "second"),
        ({"winner_model_a": False, "winner_model_b": False, "winner_tie": True}, "tie"),
        ({"preference": "A", "winner": "model_a", "preferred_index": None}, "first"),
    ],
)
def test_every_label_that_is_taken(label, preferred):
    assert outcome(label) == (*OUTCOMES[preferred], preferred == "tie")


def test_labels_under_other_names_are_mapped():
    assert outcome({"better_response_id": 1}, preferred_index="better_response_id") == ("bad", "good", False)
    assert outcome({"labels": 1}, first_preferred="labels") == ("good", "bad", False)
    row = {"question": "Hi", "one": "good", "two": "bad", "choice": "B", "worker": 3}
    mapped = shaped(row, prompt="question", response_a="one", response_b="two", preference="choice", annotator="worker")
    assert (mapped.entries[0]["chosen"], mapped.tag) == ("bad", "3")


@pytest.mark.parametrize(("first", "second"), ANSWER_PAIRS[:2])
@pytest.mark.parametrize(
    ("given", "asked"),
    [({"prompt": "Hi"}, "Hi"), ({"instruction": "Add.", "input": "2"}, "Add.\n\n2")],
)
def test_names_of_the_answers_and_forms_of_the_prompt(first, second, given, asked):
    [entry] = shaped({**given, first: "good", second: "bad", "preference": 2}).entries
    prompt = [{"role": "user", "content": asked}]
    assert entry == {"prompt": prompt, "chosen": "bad", "rejected": "good"}


def test_chatbot_arena():
    asked, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "good"), ("assistant", "bad"))
    )
    row = {
        "conversation_a": [asked, good],
        "conversation_b": [asked, bad],
        "winner": "model_b",
        "judge": "arena 1",
    }
    found = shaped(row, annotator="judge")
    assert found.entries == [{"prompt": [asked], "chosen": "bad", "rejected": "good"}]
    assert (found.tag, found.tied) == ("arena 1", False)
    assert shaped(row, "prompts").entries == [{"prompt": [asked], "references": []}]


def test_a_fault_of_an_answer_names_the_column():
    with pytest.raises(InputError, match=r"rejected is null .* \(chosen is the column response_b here\)"):
        outcome({"response_a": None, "preference": "B"})


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        *(({name: value}, f"{name} is {shown_value(value)}, which may be the first answer or mean that it lost "
           "(map the column as preferred_index")
          for name in ("preference", "winner") for value in (0, "0", 0.0, True, "false")),
        ({"preference": "left"}, "preference is the text 'left' where one of a, 1, first,"),
        ({"preference": 3}, "preference is the number 3 where"),
        ({"preference": -1}, "preference is the number -1 where"),
        ({"preference": ["A"]}, "preference is a list where"),
        ({"preference": "x" * 10**6}, "preference is the text 'xxx"),
        ({"preference": 10**5000}, "preference is the number of 16,610 bits where"),
        ({"preference": None}, "none of preference, winner,"),
        ({}, "none of preference, winner,"),
        ({"preferred_index": 2}, "preferred_index is the number 2 where one of 0, 1 is needed"),
        ({"first_preferred": "yes"}, "first_preferred is the text 'yes' where one of 1, true, 0, false is needed"),
        ({"preference": "A", "winner": "model_b"}, "preference and winner differ on which answer was preferred"),
        ({"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0}, "where one is 1 and the others 0"),
        ({"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0}, "where one is 1 and the others 0"),
        ({"winner_model_a": 1, "winner_model_b": 0}, "winner_tie is null where one is 1 and the others 0"),
        ({"winner_model_a": 1, "winner_model_b": -0.5, "winner_tie": 0}, "where one is 1 and the others 0"),
    ],
)  # fmt: skip
def test_other_labels_are_refused(label, complaint):
    with pytest.raises(InputError) as caught:
        outcome(label)
    assert str(caught.value).startswith("f.jsonl row 7: ")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 500
