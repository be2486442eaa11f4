"""Answers to other prompts: always of another prompt, in an order that nothing changes."""

import pytest

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded
from tasks.learning.kto.mismatched import mismatched


def rows(*prompts: int) -> list[Encoded]:
    return [Encoded([prompt, 1], [10 + number, 2]) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("prompts", "others"),
    [
        ((1, 2, 3), [1, 2, 0]),  # the next row, and behind the last the first
        ((1, 1, 2, 2), [2, 2, 0, 0]),  # two ratings of one prompt are not answers to another
        ((1, 2, 1), [1, 2, 1]),  # the first has the last one's prompt
        ((1, 1, 2, 1), [2, 2, 3, 2]),
    ],
)
def test_each_prompt_has_the_answer_of_the_next_row_with_another(prompts: tuple[int, ...], others: list[int]):
    given = rows(*prompts)
    found = list(mismatched(given, None))
    assert [row.prompt for row in found] == [row.prompt for row in given]
    assert [row.completion[0] - 10 for row in found] == others


def test_it_is_right_for_any_order_of_prompts():
    for code in range(3**6):
        prompts = [code // 3**place % 3 for place in range(6)]
        if len({*prompts}) == 1:
            continue
        for number, row in enumerate(mismatched(rows(*prompts), None)):
            steps = next(step for step in range(1, 6) if prompts[(number + step) % 6] != prompts[number])
            assert row.completion[0] - 10 == (number + steps) % 6


def test_an_answer_that_exceeds_the_context_is_cut():
    given = [Encoded([1, 1, 1], [5, 2]), Encoded([3], [6, 7, 8, 2])]
    assert [row.completion for row in mismatched(given, 5)] == [[6, 7], [5, 2]]


def test_ratings_of_one_prompt_are_refused():
    with pytest.raises(InputError, match=r"all ratings are of one prompt.*: add other prompts"):
        mismatched(rows(4, 4, 4), None)
