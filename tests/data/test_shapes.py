"""Every accepted shape, recognised from its columns or through the column map."""

from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.shapes.convert import ShapedRow
from tasks.data.shapes.known import SHAPES
from tests.data.shaping import GPT, A, B, S, U, entries, shaped


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [U], "completion": [A]},
        {"prompt": U, "response": A},
        {"prompt": "Hi", "response": "Hello", "id": 7, "score": None},
        {"messages": [U, A]},
        {"messages": [U, A], "prompt": "Hi", "prompt_id": "7"},
        {"conversations": GPT},
        {"conversations": GPT, "system": ""},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "input": None, "output": "Hello"},
        {"instruction": "Hi", "output": "Hello", "text": "Below is an instruction"},
    ],
)
def test_demonstration_shapes(row):
    assert entries("demonstrations", row) == [{"prompt": [U], "response": "Hello"}]


def test_alpaca_input_follows_the_instruction():
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be kind."}
    prompt = [S, {"role": "user", "content": "Add.\n\n2 and 2"}]
    assert entries("demonstrations", row) == [{"prompt": prompt, "response": "4"}]
    assert entries("prompts", row) == [{"prompt": prompt, "references": ["4"]}]


def test_conversation_gives_a_demonstration_for_every_answer():
    conversation = [S, U, A, U, B]
    assert entries("demonstrations", {"messages": conversation}) == [
        {"prompt": [S, U], "response": "Hello"},
        {"prompt": [S, U, A, U], "response": "No"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": [U], "chosen": [A], "rejected": [B]},
        {"prompt": [U], "chosen": A, "rejected": B},
        {
            "prompt": "Hi",
            "chosen": [U, A],
            "rejected": [U, B],
            "messages": [U, A],
            "score_chosen": 9.0,
        },  # UltraFeedback
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello", "rejected": "No"},
        {"chosen": [U, A], "rejected": [U, B]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"chosen": "Hi\nHello", "rejected": "Hi\nNo"},
        {"conversations": GPT[:1], "chosen": GPT[1], "rejected": {"from": "gpt", "value": "No"}},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "No"},
    ],
)
def test_preference_shapes(row):
    assert entries("preferences", row) == [{"prompt": [U], "chosen": "Hello", "rejected": "No"}]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be kind.", "prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": "Hi", "chosen": [S, U, A], "rejected": [S, U, B]},
        {"chosen": [S, U, A], "rejected": [S, U, B]},
        {"system": "Be kind.", "chosen": [U, A], "rejected": [U, B]},
    ],
)
def test_system_messages_stay(row):
    assert entries("preferences", row) == [{"prompt": [S, U], "chosen": "Hello", "rejected": "No"}]


@pytest.mark.parametrize(
    ("row", "references"),
    [
        ({"prompt": "Hi", "references": ["Hello", "Hey"]}, ["Hello", "Hey"]),
        ({"prompt": "Hi", "references": "Hello"}, ["Hello"]),
        ({"prompt": "Hi", "references": None}, []),
        ({"prompt": "Hi"}, []),
        ({"prompt": [U], "incorrect": ["No"]}, []),
        ({"prompt": "Hi", "response": "Hello"}, ["Hello"]),
        ({"prompt": "Hi", "completion": [A]}, ["Hello"]),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, []),
        ({"chosen": [U, A], "rejected": [U, B]}, []),
        ({"messages": [U, A]}, ["Hello"]),
        ({"messages": [U]}, []),
        ({"conversations": GPT}, ["Hello"]),
        ({"instruction": "Hi"}, []),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, ["Hello"]),
        ({"instruction": "Hi", "chosen": "Hello", "rejected": "No"}, []),
    ],
)
def test_prompt_shapes(row, references):
    assert entries("prompts", row) == [{"prompt": [U], "references": references}]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [pytest.param(kind, each, id=f"{kind}: {', '.join(each.required)}") for kind in SHAPES for each in SHAPES[kind]],
)
def test_rows_of_every_shape_may_have_an_annotator_or_a_category(kind, shape):
    values: dict[str, Any] = {
        "prompt": "Hi",
        "instruction": "Hi",
        "messages": [U, A],
        "chosen": [U, A],
        "rejected": [U, B],
    }
    values |= {
        "conversations": GPT if {*shape.required} <= {"conversations", "label", "rating"} else GPT[:1],
        "conversation_a": [U, A],
        "conversation_b": [U, B],
        "label": True,
        "rating": 4,
        "responses": ["Hello", "No"],
        "completions": [{"response": "Hello", "score": 4}, {"response": "No", "score": 1}],
        "answers": [{"answer": "Hello", "score": 4}, {"answer": "No", "score": 1}],
        "annotator1": 1,
    }
    row = {name: values.get(name, "Hello") for name in shape.required}
    row |= {"preference": "A"} if "preference" in shape.optional else {}
    row |= {"scores": [4, 1]} if "scores" in shape.optional else {}
    tag = "category" if kind == "prompts" else "annotator"
    own = "annotator1" if "annotator1" in shape.required else None  # whose column the vote stands in
    assert {(row.row, row.tag) for row in shaped(kind, row, row | {tag: "law"})} == {(1, own), (2, own or "law")}
    assert {row.tag for row in shaped(kind, row | {"theirs": "tax"}, **{tag: "theirs"})} == {own or "tax"}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("law", "law"),
        ("  civil \n law ", "civil law"),
        ("zoe\u0301", "zo\u00e9"),  # an e and its accent: one character
        ("\u202eL\u200bAW", "law"),  # what no reader sees, and capitals
        ("\uff4c\uff41\uff57", "law"),  # wide letters
        ("\u200b", None),
        (7, "7"),
        (0, "0"),
        (7.0, "7"),  # as pandas has them where others are null
        ("7.0", "7"),  # and writes them to CSV
        ("-7.00", "-7"),
        ("7.5", "7.5"),
        ("v7.0", "v7.0"),
        ("", None),
        (" ", None),
        (None, None),
    ],
)
def test_a_category_or_annotator_has_one_spelling(value, read):
    assert [row.tag for row in shaped("prompts", {"prompt": "Hi", "category": value})] == [read]
    pair = {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "annotator": value}
    assert [row.tag for row in shaped("preferences", pair)] == [read]


def test_only_prompts_have_a_category_and_they_have_no_annotator():
    [row] = shaped("demonstrations", {"prompt": "Hi", "response": "Hello", "category": [3]})
    assert row == ShapedRow("file.jsonl", 1, [{"prompt": [U], "response": "Hello"}])
    [row] = shaped("prompts", {"prompt": "Hi", "response": "Hello", "annotator": [3]})
    assert row == ShapedRow("file.jsonl", 1, [{"prompt": [U], "references": ["Hello"]}])


def test_all_answers_of_a_conversation_have_its_annotator():
    [row] = shaped("demonstrations", {"messages": [U, A, U, B], "annotator": "ann"})
    assert ([entry["response"] for entry in row.entries], row.tag) == (["Hello", "No"], "ann")


def test_conversation_that_ends_with_the_user_gives_that_prompt_too():
    assert entries("prompts", {"messages": [U, A, U]}) == [
        {"prompt": [U], "references": ["Hello"]},
        {"prompt": [U, A, U], "references": []},
    ]


def test_empty_texts_are_left_to_the_checks():
    assert entries("preferences", {"prompt": "", "chosen": "", "rejected": ""})[0]["chosen"] == ""


def test_column_map_renames():
    row = {"question": "Hi", "good": "Hello", "bad": "No"}
    mapped = entries("preferences", row, prompt="question", chosen="good", rejected="bad")
    assert mapped == [{"prompt": [U], "chosen": "Hello", "rejected": "No"}]


def test_column_map_may_name_only_what_differs():
    assert entries("demonstrations", {"question": "Hi", "response": "Hello"}, prompt="question") == [
        {"prompt": [U], "response": "Hello"}
    ]


def test_column_map_may_swap():
    row = {"prompt": "Hi", "chosen": "No", "rejected": "Hello"}
    assert entries("preferences", row, chosen="rejected", rejected="chosen")[0]["chosen"] == "Hello"


def test_column_map_decides_where_a_file_has_two_shapes():
    row = {"prompt": "Hi", "response": "No", "log": [U, A]}
    assert entries("demonstrations", row, messages="log") == [{"prompt": [U], "response": "Hello"}]


def test_row_numbers_stay_and_optional_columns_may_come_and_go():
    rows = shaped("prompts", {"prompt": "a"}, {"prompt": "b", "system": "s"}, {"prompt": "c"})
    assert [row.row for row in rows] == [1, 2, 3]
    assert [len(row.entries[0]["prompt"]) for row in rows] == [1, 2, 1]


def test_every_shape_is_reached():
    for kind, shapes in SHAPES.items():
        required = [shape.required for shape in shapes]
        for position, columns in enumerate(required):
            assert not any(set(earlier) <= set(columns) for earlier in required[:position]), (kind, columns)


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        (
            "preferences",
            {"choosen": "a"},
            "prepare.preferences.columns in params.yaml maps 'choosen', but preferences only",
        ),
        ("preferences", {"references": "a"}, "maps 'references', but preferences only have prompt, chosen, rejected"),
        ("preferences", {"prompt": "question"}, "maps prompt to 'question', but the columns of file.jsonl are a, b:"),
        ("demonstrations", {}, "file.jsonl has the columns a, b, but demonstrations need (prompt, response) or"),
        ("demonstrations", {"prompt": "a"}, "name yours under prepare.demonstrations.columns in params.yaml"),
        ("prompts", {}, "but prompts need (prompt, references) or"),
    ],
)
def test_columns_that_do_not_fit(kind, columns, message):
    with pytest.raises(InputError) as error:
        shaped(kind, {"a": "x", "b": "y"}, **columns)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (
            "preferences",
            {"prompt": "p", "chosen": 4, "rejected": "r"},
            "file.jsonl row 2: chosen is the number 4 where",
        ),
        ("preferences", {"prompt": "p", "chosen": "c", "rejected": None}, "file.jsonl row 2: rejected is null where"),
        (
            "preferences",
            {"prompt": {"a": 1}, "chosen": "c", "rejected": "r"},
            "row 2: message 1 of prompt has the keys a",
        ),
        ("preferences", {"prompt": "p", "chosen": "c"}, "file.jsonl row 2: the column rejected is missing"),
        (
            "preferences",
            {"prompt": "Hi", "chosen": [S, U, A], "rejected": [U, B]},
            "row 2: chosen and rejected say different things before the prompt",
        ),
    ],
)
def test_bad_row_is_named(kind, bad, message):
    with pytest.raises(InputError) as error:
        shaped(kind, {"prompt": "p", "chosen": "c", "rejected": "r"}, bad)
    assert message in str(error.value)
    assert str(error.value).endswith(": fix or remove the row")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("demonstrations", {"prompt": "p", "response": ["a"]}, "message 1 of response is a text"),
        ("demonstrations", {"messages": [U]}, "the conversation has no answer of the assistant"),
        ("demonstrations", {"messages": "Hi"}, "messages is a text where a list of messages is needed"),
        ("demonstrations", {"instruction": "i", "input": 3, "output": "o"}, "input is the number 3"),
        ("demonstrations", {"prompt": "p", "response": "r", "system": 5}, "system is the number 5"),
        ("prompts", {"prompt": "p", "references": ["a", None]}, "reference 2 is null"),
        ("prompts", {"prompt": "p", "references": {"a": 1}}, "references is an object"),
        ("prompts", {"messages": [A]}, "the conversation has no turn of the user"),
        ("prompts", {"prompt": "p", "category": 3.5}, "category is the number 3.5 where a text is needed"),
        # 2^53 and 2^53 + 1 are one float: so large, an id may be another's.
        ("prompts", {"prompt": "p", "category": 1e16}, "category is the number 1e+16 where a text is needed"),
        ("demonstrations", {"prompt": "p", "response": "r", "annotator": True}, "annotator is the truth value True"),
        ("demonstrations", {"prompt": "p", "response": "r", "annotator": ["a"]}, "annotator is a list where a text"),
        ("demonstrations", {"prompt": "p", "response": "r", "annotator": "x" * 101}, "annotator has 101 characters"),
        ("prompts", {"prompt": "p", "category": "x" * 101}, "category has 101 characters where a name of at most 100"),
    ],
)
def test_wrong_types(kind, row, message):
    with pytest.raises(InputError) as error:
        shaped(kind, row)
    assert message in str(error.value)


def test_missing_mapped_column_is_named_as_the_file_names_it():
    with pytest.raises(InputError, match="row 2: the column good is missing"):
        shaped("demonstrations", {"prompt": "p", "good": "r"}, {"prompt": "p"}, response="good")
