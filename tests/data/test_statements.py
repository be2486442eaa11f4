"""What rows say against themselves."""

from typing import Any

import pytest

from tasks.data.records import TYPES
from tasks.data.shapes.statements import TRUTHS, is_bad, is_read, reason_to_leave_out
from tasks.data.shapes.values import IgnorableError, ShapeError

NAN = float("nan")


def reason(fields: dict[str, Any], kind: Any = "preferences") -> str | None:
    left = reason_to_leave_out(fields, kind)
    return left and left.reason


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["weight", "train"])
@pytest.mark.parametrize(
    ("value", "is_left"),
    [
        *((value, True) for value in (0, 0.0, False, "0", "False")),
        *((value, False) for value in (1, 1.0, True, "1", None, "", NAN)),
    ],
)
def test_a_row_that_is_not_to_be_learned(kind, name, value, is_left):
    assert reason({name: value}, kind) == ("weight" if is_left else None)


@pytest.mark.parametrize(
    ("value", "is_left"),
    [
        *((value, True) for value in (False, 0, "bad", "Thumbs Down", " false ")),
        *((value, False) for value in (True, 1, "good", None, "")),
    ],
)
def test_a_bad_answer_is_no_demonstration(value, is_left):
    assert reason({"label": value}, "demonstrations") == ("label" if is_left else None)
    assert reason({"label": value}, "preferences") == ("label" if is_left else None)
    assert reason({"label": value}, "prompts") is None  # the prompt is one all the same
    assert is_bad({"label": value}) is is_left


@pytest.mark.parametrize("value", [0.5, -1, 2, "sports", [0], {"a": 1}])
@pytest.mark.parametrize("name", ["label", "weight", "train"])
def test_what_is_no_truth_value_is_refused_with_the_way_out(name, value):
    with pytest.raises(ShapeError, match=rf"^{name} is .* where true or false, 1 or 0 is needed, if it rates the row$"):
        reason({name: value})


@pytest.mark.parametrize("kind", TYPES)
def test_one_statement_hides_no_other(kind):
    for fields in ({"weight": 0, "train": 0.5}, {"weight": 0, "label": "maybe"}):
        with pytest.raises(ShapeError, match="where true or false, 1 or 0 is needed"):
            reason(fields, kind)
    with pytest.raises(ShapeError, match=r"^weight and train say different things$"):
        reason({"weight": 1, "train": False}, kind)
    assert reason({"weight": 0, "train": False}, kind) == "weight"


def test_the_words_are_distinguished():
    assert all(word == word.strip().casefold() for word in TRUTHS)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_avg_rating", "rejected_avg_rating"),
        ("Reward_Chosen", "Reward_rejected"),
    ],
)
@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (9.0, 1, None),
        (1, 9.5, "scores"),
        (4, 4.0, "equal_scores"),
        ("3.5", "4", "scores"),  # from CSV
        ("good", "bad", None),
        (None, 3, None),
        (3, NAN, None),
        (True, 3, None),
    ],
)
def test_scores_must_not_contradict_the_choice(chosen, rejected, first, second, why):
    assert reason({chosen: first, rejected: second}) == why
    assert reason({rejected: second, chosen: first}) == why
    assert reason({chosen: first, rejected: second}, "demonstrations") is None


@pytest.mark.parametrize(
    ("margin", "why"), [(0.5, None), (0, "equal_scores"), (-2, "scores"), ("-2", "scores"), (None, None)]
)
def test_nor_must_the_margin(margin, why):
    assert reason({"margin": margin}) == why


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen_logps": -9, "rejected_logps": -3},
        {"chosen_tokens": 1, "rejected_tokens": 5},
        {"chosen_rank": 1, "rejected_rank": 2},
        {"score_chosen": 1},
        {"score_a": 1, "score_b": 2},
    ],
)
def test_other_numbers_say_nothing(fields):
    assert reason(fields) is None


def test_the_reason_is_given_with_its_values():
    left = reason_to_leave_out({"score_chosen": 1.5, "score_rejected": 3}, "preferences")
    assert left is not None and left.detail == "score_chosen is 1.5 and score_rejected 3"


@pytest.mark.parametrize("name", ["history", "image", "images", "audio", "audios", "video", "videos"])
@pytest.mark.parametrize("kind", TYPES)
def test_what_changes_the_meaning_of_a_row_is_refused(name, kind):
    with pytest.raises(IgnorableError, match=rf"^{name} holds "):
        reason({name: ["x"]}, kind)
    assert reason({name: None}, kind) is reason({name: []}, kind) is reason({name: ""}, kind) is None


def test_what_is_read_here():
    assert is_read("label", "prompts") and is_read("weight", "prompts") and is_read("margin", "preferences")
    assert is_read("score_rejected", "preferences") and not is_read("score_rejected", "prompts")
    assert not is_read("id", "preferences") and not is_read("chosen_logps", "preferences")
