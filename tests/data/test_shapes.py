"""Every accepted shape, recognised from its columns or through the column map."""

import re
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.records import Kind
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import ShapedRow, shape_rows
from tasks.data.shapes.known import SHAPES
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import RatingSource, Source

U, A, B = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No"))
)
S = {"role": "system", "content": "Be kind."}
GPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def shaped(kind: Kind, *rows: dict[str, Any], **columns: str) -> list[ShapedRow]:
    raw = [RawRow(number, fields) for number, fields in enumerate(rows, start=1)]
    source = Source(source="file.jsonl", columns=columns, ignore=[], limit=None, options={})
    if kind == "ratings":
        source = RatingSource(**source.model_dump(), threshold=3.0)
    return list(shape_rows(raw, kind, source, "file.jsonl", bad=BadRows("file.jsonl"), tally=Tally.empty()))


def entries(kind: Kind, row: dict[str, Any], **columns: str) -> list[dict[str, Any]]:
    [only] = shaped(kind, row, **columns)
    return only.entries


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
    "row",
    [
        {"prompt": "Hi", "response": "Hello", "label": True},
        {"prompt": "Hi", "completion": "Hello", "label": 1},
        {"prompt": [U], "completion": [A], "label": "thumbs up"},
        {"messages": [U, A], "label": True},
        {"conversations": GPT, "label": "true"},
        {"instruction": "Hi", "input": "", "output": "Hello", "label": "good"},
        {"prompt": "Hi", "response": "Hello", "rating": 4},
        {"prompt": "Hi", "response": "Hello", "rating": "3.5"},
    ],
)
def test_rated_answers(row):
    good = {"prompt": [U], "response": "Hello", "desirable": True}
    assert entries("ratings", row) == [good]
    bad = row | ({"label": 0} if "label" in row else {"rating": 2})
    assert entries("ratings", bad) == [good | {"desirable": False}]


def test_of_a_conversation_the_last_answer_is_rated():
    row = {"messages": [S, U, A, U, B], "label": False}
    assert entries("ratings", row) == [{"prompt": [S, U, A, U], "response": "No", "desirable": False}]


def test_a_pair_is_two_ratings():
    row = {"prompt": "Hi", "output_1": "No", "output_2": "Hello", "preference": 2}
    both = [
        {"prompt": [U], "response": "Hello", "desirable": True},
        {"prompt": [U], "response": "No", "desirable": False},
    ]
    assert entries("ratings", row) == both
    [tie] = shaped("ratings", row | {"preference": "tie"})
    assert tie.tied


def test_a_rating_at_the_threshold_is_neither_good_nor_bad():
    [row] = shaped("ratings", {"prompt": "Hi", "response": "Hello", "rating": 3.0})
    assert row.tied


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "Hi", "response": "Hello", "label": None}, "label is null where true or false, 1 or 0 is needed"),
        ({"prompt": "Hi", "response": "Hello", "label": "maybe"}, "label is the text 'maybe' where true or false"),
        ({"prompt": "Hi", "response": "Hello", "rating": "high"}, "rating is the text 'high' where a number is needed"),
        ({"prompt": "Hi", "response": "Hello", "rating": None}, "rating is null where a number is needed"),
        ({"messages": [U, A, U], "label": True}, "the conversation ends with the user where the assistant's answer"),
    ],
)
def test_what_rates_nothing_is_refused(row, fault):
    with pytest.raises(InputError, match=re.escape(fault)):
        entries("ratings", row)


def test_ratings_that_are_numbers_need_a_threshold():
    source = RatingSource(source="file.jsonl", columns={}, ignore=[], limit=None, options={}, threshold=None)
    raw = [RawRow(1, {"prompt": "Hi", "response": "Hello", "rating": 4})]
    rows = shape_rows(raw, "ratings", source, "file.jsonl", bad=BadRows("file.jsonl"), tally=Tally.empty())
    with pytest.raises(InputError, match=r"file.jsonl rates answers by numbers: set prepare.ratings.threshold"):
        list(rows)


RANKED: list[dict[str, Any]] = [
    {"prompt": "Hi", "responses": ["Hello", "No", "Go"], "scores": [9, 5, 1]},
    {"prompt": "Hi", "responses": ["No", "Hello", "Go"], "ranks": [2, 1, 3]},
    {
        "instruction": "Hi",
        "completions": [
            {"response": "Hello", "overall_score": 9.0},
            {"response": "No", "overall_score": 5},
            {"response": "Go", "overall_score": 1},
        ],
    },
    {
        "prompt": "Hi",
        "answers": [{"answer": "Go", "rank": 3.0}, {"answer": "Hello", "rank": 1}, {"answer": "No", "rank": 2}],
    },
]


@pytest.mark.parametrize("row", RANKED)
def test_each_two_answers_of_a_ranked_list_are_a_pair(row):
    pairs = shaped("preferences", row)
    strengths = {(pair.entries[0]["chosen"], pair.entries[0]["rejected"]): pair.strength for pair in pairs}
    expected = {("Hello", "No"): 4.0, ("Hello", "Go"): 8.0, ("No", "Go"): 4.0}
    if "ranks" in row or "answers" in row:
        assert strengths == dict.fromkeys(expected)
    else:
        assert strengths == expected
    assert {(pair.row, pair.weight) for pair in pairs} == {(1, 1 / 3)}  # three pairs weigh as much as one
    assert entries("prompts", row) == [{"prompt": [U], "references": []}]


def test_answers_of_one_score_are_tied_and_a_single_pair_has_no_weight():
    [pair] = shaped("preferences", {"prompt": "Hi", "responses": ["Hello", "No"], "scores": [3, 3.0]})
    assert (pair.tied, pair.weight, pair.strength) == (True, None, 0.0)
    pairs = shaped("preferences", {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [3, 3, 1]})
    assert [pair.tied for pair in pairs] == [True, False, False]


def test_answers_with_scores_are_ratings():
    row = {"prompt": "Hi", "responses": ["Hello", "No", "Go"], "scores": [5, 3, 1]}
    rated = shaped("ratings", row)
    assert [(each.entries[0]["response"], each.entries[0]["desirable"], each.tied) for each in rated] == [
        ("Hello", True, False),
        ("No", False, True),  # at the threshold, 3
        ("Go", False, False),
    ]
    with pytest.raises(InputError, match="ranks do not tell good answers from bad ones"):
        shaped("ratings", {"prompt": "Hi", "responses": ["Hello", "No"], "ranks": [1, 2]})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"responses": ["Hello"], "scores": [1]}, "responses has 1 answers where 2 to 50 are needed"),
        ({"responses": ["a"] * 51, "scores": [1] * 51}, "responses has 51 answers where 2 to 50 are needed"),
        ({"scores": [1]}, "scores has 1 numbers for 2 responses"),
        ({"scores": [1, "high"]}, "one of scores is the text 'high' where a number is needed"),
        ({"scores": None}, "neither scores nor ranks stand beside responses"),
        ({"scores": [1, 2], "ranks": [2, 1]}, "scores and ranks stand beside responses"),
        ({"responses": "Hello", "scores": [1]}, "responses is the text 'Hello' where a list is needed"),
        ({"responses": ["Hello", 7], "scores": [2, 1]}, "rejected is the number 7 where"),
    ],
)
def test_ranked_lists_that_cannot_be_read(changes, fault):
    row = {"prompt": "Hi", "responses": ["Hello", "No"], "scores": [2, 1]} | changes
    with pytest.raises(InputError, match=re.escape(fault)):
        shaped("preferences", row)


def test_a_column_for_each_annotator_is_a_vote_of_each():
    row = {"instruction": "Hi", "input": "", "response1": "No", "response2": "Hello"}
    votes = shaped("preferences", row | {"annotator1": 2, "annotator2": 0, "annotator3": None})
    assert [(vote.tag, vote.entries[0]["chosen"], vote.tied) for vote in votes] == [
        ("annotator1", "Hello", False),
        ("annotator2", "No", True),
    ]


@pytest.mark.parametrize(
    ("about", "strength"),
    [
        ({"margin": 2}, 2.0),
        ({"score_chosen": 8.5, "score_rejected": "6"}, 2.5),
        ({"chosen-rating": 5, "rejected-rating": 4}, 1.0),
        ({"score_chosen": None, "score_rejected": 6}, None),
        ({}, None),
    ],
)
def test_a_pair_is_as_strong_as_its_scores_differ(about, strength):
    [pair] = shaped("preferences", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"} | about)
    assert pair.strength == strength


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
