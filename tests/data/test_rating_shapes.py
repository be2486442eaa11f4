"""Ratings: labels and numbers beside an answer, a conversation or a pair."""

import re

import pytest

from tasks.common.errors import InputError
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import shape_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import RatingSource
from tests.data.shaping import GPT, A, B, S, U, entries, shaped


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
