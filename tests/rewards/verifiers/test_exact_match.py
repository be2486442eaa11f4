import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "exact_match"


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Paris", 1),
        ("  paris\n", 1),
        ("\uff30aris", 1),  # full-width P
        ("Paris.", 0),
        ("", 0),
        ("Paris or London or Rome", 0),
        ("What is the capital of France?", 0),
        ("The answer is correct.", 0),
        ("P" * 10**6, 0),
    ],
)
def test_by_default_case_space_and_width_make_no_difference(answer: str, score: float):
    assert scored(NAME, answer, "Rome", "Paris") == score


def test_other_steps_are_named():
    assert scored(NAME, "The Eiffel-Tower!", "eiffeltower", normalise=["case", "punctuation", "articles", "whitespace"])
    assert not scored(NAME, "paris", "Paris", normalise=[])


def test_an_answer_of_nothing_is_not_right_by_a_reference_of_nothing():
    assert scored(NAME, "the", "a", normalise=["articles", "whitespace"]) == 0


@pytest.mark.parametrize(
    ("answer", "score"),
    [("cat sat", 0.8), ("the cat sat", 1), ("cat cat cat cat", 2 / 7), ("dog", 0), ("", 0)],
)
def test_partial_credit_is_the_f1_of_words(answer: str, score: float):
    assert scored(NAME, answer, "the cat sat", "bird", partial=True) == pytest.approx(score)


@pytest.mark.parametrize(("answer", "score"), [("hm 12 #### 14", 1), ("14", 0), ("#### 14 #### 15", 0), ("####", 0)])
def test_with_a_marker_only_what_follows_the_last_one_counts(answer: str, score: float):
    assert scored(NAME, answer, "14", marker="####") == score


def test_a_column_holds_one_text_or_several():
    assert scored(NAME, "72", row={"key": 72}, column="key")
    assert scored(NAME, "no", row={"key": ["yes", "no"]}, column="key")


def test_a_row_without_a_key_is_refused_or_has_the_score_that_is_stated():
    with pytest.raises(InputError, match=r"^exact_match cannot score the answer of prompt p1 \('a'\): it has no refer"):
        scored(NAME, "a")
    with pytest.raises(InputError, match="its row has no 'key'; give it one, name an extra column"):
        scored(NAME, "a", "a", column="key")
    assert scored(NAME, "a", otherwise=0.25) == 0.25
