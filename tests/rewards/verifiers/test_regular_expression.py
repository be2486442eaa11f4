from typing import Any

import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "regular_expression"


@pytest.mark.parametrize(
    ("answer", "options", "score"),
    [
        ("order 12", {"pattern": r"\d+"}, 1),
        ("order 12", {"pattern": r"\d+", "whole": True}, 0),
        ("12", {"pattern": r"\d+", "whole": True}, 1),
        ("Yes", {"pattern": "yes"}, 0),
        ("Yes", {"pattern": "yes", "flags": ["ignore_case"]}, 1),
        ("Yes", {"pattern": "yes", "flags": ["ignore_case", "ignore_case"]}, 1),
        ("a\nb", {"pattern": "a.b", "flags": ["dot_all"]}, 1),
        ("a\nb", {"pattern": "^b$", "flags": ["multiline"]}, 1),
        ("fine", {"pattern": "sorry", "wanted": False}, 1),
        ("sorry", {"pattern": "sorry", "wanted": False}, 0),
        ("", {"pattern": "sorry", "wanted": False}, 0),
        ("", {"pattern": ".*"}, 0),
        ("  \n", {"pattern": ".*"}, 0),
        ("x" * 10**6, {"pattern": "y"}, 0),
    ],
)
def test_a_match_is_right_or_wrong_as_wanted(answer: str, options: dict[str, Any], score: float):
    assert scored(NAME, answer, **options) == score


@pytest.mark.parametrize("wanted", [True, False])
def test_an_expression_that_would_never_end_is_given_up(wanted: bool):
    assert scored(NAME, "a" * 60 + "!", pattern=r"^(a|aa)+$", seconds=0.1, wanted=wanted) == 0


def test_each_row_may_have_its_own():
    assert scored(NAME, "b", row={"format": "[bc]"}, column="format") == 1
    assert scored(NAME, "b", row={}, column="format", otherwise=0.5) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "it needs one of pattern and column"),
        ({"pattern": "a", "column": "b"}, "it needs one of pattern and column"),
        ({"pattern": "("}, r"'(' is no regular expression (missing ) at position 1): correct it"),
        ({"column": "none"}, "its row has no 'none'; give it one"),
        ({"column": "number"}, "3 is no regular expression"),
    ],
)
def test_what_is_no_expression_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError) as refused:
        scored(NAME, "a", row={"number": 3}, **options)
    assert message in str(refused.value)
