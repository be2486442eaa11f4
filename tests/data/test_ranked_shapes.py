"""Answers with scores or ranks: pairs of each two, their weight and strength; and votes in a column each."""

import re
from typing import Any

import pytest

from tasks.common.errors import InputError
from tests.data.shaping import U, entries, shaped

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


def test_keys_without_a_value_say_nothing_as_parquet_fills_them_in():
    completions = [
        {"response": None, "text": "Hello", "rank": None, "score": 2},
        {"response": "No", "text": None, "rank": None, "score": 1},
    ]
    [pair] = shaped("preferences", {"prompt": "Hi", "completions": completions})
    assert pair.entries == [{"prompt": [U], "chosen": "Hello", "rejected": "No"}]
    with pytest.raises(InputError, match="the score of answer 1 of completions is null where a number is needed"):
        shaped("preferences", {"prompt": "Hi", "completions": [completions[0] | {"score": None}, completions[1]]})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"responses": ["Hello"], "scores": [1]}, "responses has 1 answers where 2 to 50 are needed"),
        ({"responses": ["a"] * 51, "scores": [1] * 51}, "responses has 51 answers where 2 to 50 are needed"),
        ({"scores": [1]}, "scores has 1 numbers for 2 responses"),
        ({"scores": [1, "high"]}, "one of scores is the text 'high' where a number is needed"),
        ({"scores": [1, float("inf")]}, "one of scores is the number inf where a number is needed"),
        ({"scores": ["-inf", 1]}, "one of scores is the text '-inf' where a number is needed"),
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
