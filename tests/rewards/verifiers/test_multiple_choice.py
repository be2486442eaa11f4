import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "multiple_choice"
CAPITALS = ["Rome", "Paris", "New York", "York"]
LISTED = "Which is the capital of France?\nA) Rome\nB) Paris\nC) New York\nD) York"


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "**B**",
        "B) Paris",
        "B: Paris",
        "\uff22",  # full width
        "Answer: B",
        "answer: b",
        "The answer is (B).",
        "The answer is **B**, because A is in Italy and C in America.",
        "The correct answer is option B",
        r"A is tempting. \boxed{B}",
        r"\boxed{\text{B}}",
        "Not A, which is in Italy.\nSo it is B",
        "I considered A and C.\nFinal answer: B",
        f"{LISTED}\nThe answer is B.",
        f"{LISTED}\nB",
        "The answer is A? No, wait. The answer is B.",
    ],
)
def test_the_letter_that_is_stated_last_is_the_answer(answer: str):
    assert scored(NAME, answer, "B") == 1
    assert scored(NAME, answer, "The answer is B.") == 1
    assert scored(NAME, answer, "A") == scored(NAME, answer, "C") == scored(NAME, answer, "D") == 0


@pytest.mark.parametrize("answer", ["Paris", "It is Paris.", "The answer is Paris!", "answer: PARIS", r"\boxed{Paris}"])
def test_the_text_of_an_option_stands_for_its_letter(answer: str):
    assert scored(NAME, answer, "B", row={"of": CAPITALS}, options="of") == 1
    assert scored(NAME, answer, row={"of": CAPITALS, "key": "paris"}, column="key", options="of") == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        LISTED,
        "A B C D",
        "A, B, C, D",
        "A, B, C or D",
        "The answer is A, B, C or D.",
        "The answer is A or B.",
        "Answer: A/B/C/D",
        r"\boxed{A, B}",
        "A) B) C) D)",
        "E",
        "A good question",
        "The answer is a good one.",
        "The answer is correct.",
        "Rome Paris New York",
        "I can't say. I'd rather not.",
        "A" * 10**6,
        "(" * 10**5 + "B",
        "answer " * 10**4,
    ],
)
def test_what_states_no_single_option_is_wrong(answer: str):
    for letter in "BCD":
        assert scored(NAME, answer, letter, row={"of": CAPITALS}, options="of") == 0 or answer == "(" * 10**5 + "B"


def test_letters_are_an_option():
    assert scored(NAME, "F", "F", letters="ABCDEFGHIJ") == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "Berlin"}, "what is expected, 'Berlin', is no option (A, B, C, D)"),
        ({"key": "B", "of": list("abcde")}, "no list of 4 texts at most: correct it"),
        ({}, "its row has no 'key'"),
    ],
)
def test_a_row_that_says_nothing_is_refused(row: dict[str, object], message: str):
    with pytest.raises(InputError) as refused:
        scored(NAME, "B", row=row, column="key", options="of")
    assert message in str(refused.value)
