"""Splits by hash: disjoint, stable, in proportion."""

from collections import Counter

import pytest
from hypothesis import given, strategies

from tasks.data.records import Message
from tasks.data.splits import content_id, prompt_root, prompts_needed, split_of
from tasks.settings.params import Split as Shares

SHARES = Shares(validation=0.1, test=0.2)


def message(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def asked(content: str) -> list[Message]:
    return [message("user", content)]


def test_root_ends_with_the_first_turn_of_the_user():
    conversation = [message("system", "s"), message("user", "1"), message("assistant", "a"), message("user", "2")]
    assert prompt_root(conversation) == conversation[:2]
    assert prompt_root(conversation[:1]) == conversation[:1]


@given(strategies.text(), strategies.text(), strategies.text())
def test_later_turns_stay_in_the_split_of_the_first(first, answer, second):
    later = [*asked(first), message("assistant", answer), message("user", second)]
    assert split_of(later, SHARES) == split_of(asked(first), SHARES)


def test_case_and_white_space_do_not_part_prompts():
    for number in range(50):
        same = [f"What is {number}?", f" what  is {number}?\n", f"WHAT\tIS {number}?"]
        assert len({split_of(asked(prompt), SHARES) for prompt in same}) == 1


def test_shares_are_met():
    count = 4000
    found = Counter(split_of(asked(str(number)), SHARES) for number in range(count))
    # Five standard deviations of a binomial share: 5 * sqrt(.2 * .8 / 4000) = .032 and 5 * sqrt(.1 * .9 / 4000) = .024.
    assert found["test"] / count == pytest.approx(0.2, abs=0.032)
    assert found["validation"] / count == pytest.approx(0.1, abs=0.024)
    assert found.total() == count


def test_splits_never_change():
    # A change of the rule would move prompts that models were trained on into the test split.
    found = [split_of(asked(f"prompt {number}"), SHARES) for number in range(12)]
    assert found == [
        "validation",
        "validation",
        "train",
        "test",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "test",
    ]


def test_ids_depend_on_content_alone():
    assert content_id({"a": "é", "b": 1}) == content_id({"b": 1, "a": "é"})
    assert content_id(["a", "b"]) != content_id(["ab"])
    # printf '["x"]' | sha256sum | cut -c-16
    assert content_id(["x"]) == "cd65ea2c2ad99e94"


def test_prompts_needed():
    # .9^43 = .0108 and .9^44 = .0097; .5^6 = .0156 and .5^7 = .0078.
    assert prompts_needed(0.1) == 44
    assert prompts_needed(0.5) == 7
