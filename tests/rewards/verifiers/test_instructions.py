from typing import Any

import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "instructions"


def follows(answer: str, name: str, **details: Any) -> float:
    return scored(NAME, answer, row={"instruction_id_list": [name], "kwargs": [details]})


CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat", "old man"]}, ["The CAT and the old man."], ["cats, old man", "cat"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["catalogue"], ["A Cat!", "cat"]),
    ("keywords:frequency", {"keyword": "cat", "relation": "at least", "frequency": 2}, ["cat, Cat"], ["cat cats"]),
    ("keywords:frequency", {"keyword": "cat", "relation": "less than", "frequency": 2.0}, ["cat", "dog"], ["cat cat"]),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_relation": "at least", "let_frequency": 3},
        ["eEe"],
        ["ee", "ababab"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        ["One. Two!", "What? No", "It costs 3.50. Dr. Who pays."],
        ["One", "It costs 3.50 a day", "Dr. Who pays.", "... !!! ???"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 4},
        ["one two three", "don't stop me"],
        ["one two three four", "well-known is one of them"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 3},
        ["one two three"],
        ["- - - -", "... , !", "one, two!"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne\n***\nTwo\n***"],
        ["One\n\nTwo", "One\n***\n***\nTwo", "***", "*** *** ***"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        ["One.\n\nThen two.", 'One.\n\n\n"Then" two.'],
        ["One.\n\nThenceforth.", "Then.\n\nOne.", "One.\n\nTwo.\n\nThen."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [place]"],
        ["[a]", "[] []", "[[ ]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Hi.\nP.S. More", "Hi.\np. s. more"],
        ["Hi.\nP.S.", "psalm"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "- one\n  - two", "Here:\n* one\n* two"],
        ["* one", "* one\n* two\n* three", "** one\n** two", "--- one\n--- two", "*\n*"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** **two**"],
        ["*one*", "** ** ** **", "****", "* one\n* two"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "**Section 1**\na\n**Section 2**"],
        ["SECTION 1\na", "SECTION A\nSECTION B"],
    ),
    ("detectable_format:constrained_response", {}, ["My answer is yes."], ["My answer is", "yes"]),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", "1"],
        ["{'a': 1}", 'It is {"a": 1}', "[" * 40_000],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\nText", "Text <<A title>>"], ["<<>>", "<< >>", "<Joy>", "<<Joy"]),
    (
        "combination:two_responses",
        {},
        ["One\n******\nTwo"],
        ["One", "One\n******\nOne", "******\nTwo", "1******2******3"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Why is it so?"},
        ["Why is it so? Because."],
        ["Why is it so?", "Because. Why is it so?"],
    ),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ["Hi. Any QUESTIONS?", '"Any questions?"'], ["Any?"]),
    ("startend:quotation", {}, ['"Hi."'], ['"', '""', "Hi", '"Hi" he message']),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["NO and NEVER"],
        ["No and Never", "NO 12 34"],
    ),
    ("change_case:english_capital", {}, ["ALL OF IT, 3 TIMES!"], ["All", "123"]),
    ("change_case:english_lowercase", {}, ["all of it, 3 times!"], ["All", "123"]),
    ("punctuation:no_comma", {}, ["No. Not one."], ["yes, one", "\uff0c"]),
]


@pytest.mark.parametrize(("name", "details", "following", "not_following"), CASES)
def test_each_instruction(name: str, details: dict[str, Any], following: list[str], not_following: list[str]):
    assert [follows(text, name, **details) for text in following] == [1] * len(following)
    assert [follows(text, name, **details) for text in not_following] == [0] * len(not_following)


@pytest.mark.parametrize(("name", "details"), [case[:2] for case in CASES])
def test_an_answer_of_nothing_follows_none(name: str, details: dict[str, Any]):
    assert follows("", name, **details) == follows(" \n", name, **details) == 0


@pytest.mark.parametrize("answer", ["a" * 10**6, "a." * 10**5, "*" * 10**5, "[" * 10**5, "\n" * 10**5, "<<" * 10**5])
def test_no_answer_takes_long(answer: str):
    for name, details, *_ in CASES:
        assert follows(answer, name, **details) in (0, 1)


def test_all_are_followed_or_a_share_of_them():
    row = {
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{}, {"num_words": None}],
    }
    assert scored(NAME, "fine", row=row) == 1
    assert scored(NAME, "Fine", row=row) == 0
    assert scored(NAME, "Fine", row=row, partial=True) == 0.5


def test_rows_without_instructions_have_the_score_that_is_stated():
    assert scored(NAME, "a", row={}, otherwise=0.0) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "its row has no 'instruction_id_list'"),
        ({"instruction_id_list": [], "kwargs": []}, "its row needs a list 'instruction_id_list' and one as long"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "one as long, 'kwargs'"),
        (
            {"instruction_id_list": ["a:b"], "kwargs": [{}]},
            "'a:b' is no instruction that can be checked (keywords:exis",
        ),
        ({"instruction_id_list": [3], "kwargs": [{}]}, "3 is no instruction"),
        (
            {"instruction_id_list": ["keywords:frequency"], "kwargs": [{"keyword": "a", "relation": None}]},
            "the instruction keywords:frequency lacks 'relation' in its details: give it",
        ),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "cat"}]},
            "the details of the instruction keywords:existence are {'keywords': 'cat'}: correct them",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "'relation': 'about'}: correct them",
        ),
    ],
)
def test_what_cannot_be_checked_is_refused(row: dict[str, Any], message: str):
    with pytest.raises(InputError) as refused:
        scored(NAME, "a", row=row)
    assert message in str(refused.value)
