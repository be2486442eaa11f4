"""Findings inside texts and between rows, token lengths, and the guard around Great Expectations."""

import random
import re

import numpy as np
import pandas as pd
import pytest

from tasks.data.checks import contamination
from tasks.data.checks.contamination import COMMON, Question, Study, find_contamination
from tasks.data.checks.overlap import HASH_BYTES, Keys, contradictions, copies, key_of, shared_prompts
from tasks.data.checks.patterns import encoding_damage, personal_data
from tasks.data.checks.schema import SPLITS, Row, inspect, texts
from tasks.data.checks.suites import FILE_CHECKS, ROW_CHECKS, data_context, row_suite, run_expectations
from tasks.data.records import TYPES, Demonstration, Kind, Message, Preference, Prompt, tidy
from tests.conftest import ROOT


@pytest.mark.slow
def test_every_check_of_rows_is_expected_and_documented() -> None:
    expected = {each.meta["check"] for kind in TYPES for each in row_suite(kind, max_tokens=9) if each.meta}
    page = (ROOT / "docs/validation.md").read_text(encoding="utf-8")
    table = page.split("| check |")[1].split("\n\n")[0]
    first_cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    documented = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert expected == set(ROW_CHECKS)
    assert documented == {*ROW_CHECKS, *FILE_CHECKS}


CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "pay", "arguments": {"card": 4111111111111111}}}],
}
ASKED, RESULT = {"role": "user", "content": "question"}, {"role": "tool", "content": "sent to ann@example.org"}


def pair(number: int, prompt: str, chosen: str, rejected: str, split: str = "train") -> Row:
    record = {"id": str(number), "split": split, "source": "raw.jsonl", "row": number}
    messages = [{"role": "user", "content": prompt}]
    columns = {"prompt": messages, "chosen": chosen, "rejected": rejected, "annotator": None}
    return inspect("preferences", record | columns)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"chosen": None}, "chosen is NoneType, not text"),
        ({"split": "dev"}, "split is none of train, validation, test"),
        ({"row": "3"}, "row is not a number"),
        ({"prompt": "hello"}, "prompt is not a list of messages"),
        ({"prompt": [{"role": "user"}]}, "prompt has a message that is not a role and a content"),
        ({"truncated": {"rejected": 3}}, None),
        ({"truncated": 3}, "truncated is not an object of tokens by field"),
        (
            {"prompt": [{"role": "assistant", "content": "hello"}]},
            "prompt does not end with the user's turn or a tool's",
        ),
        ({"prompt": [CALLED, RESULT]}, None),
        (
            {"prompt": [CALLED | {"tool_calls": [{}]}, RESULT]},
            "prompt has a message whose tool_calls are not calls of functions",
        ),
        ({"prompt": [ASKED | {"tools": ["f"]}]}, "prompt has a message whose tools are not JSON schemas of functions"),
        ({"prompt": [RESULT | {"name": 1}]}, "prompt has a message whose name or tool_call_id is not text"),
        ({"prompt": [ASKED | {"images": []}]}, "prompt has a message that is not a role and a content"),
        ({"chosen": CALLED}, None),
        ({"chosen": ASKED}, "chosen is a message without a call of the assistant"),
        ({"chosen": CALLED | {"tools": 1}}, "chosen is a message whose tools are not JSON schemas of functions"),
        ({"annotator": CALLED}, "annotator is dict, not text"),
        ({"rejected": "\ud800"}, "rejected holds half a surrogate pair, which is no character"),
    ],
)
def test_the_shape_of_a_row(change, fault):
    record = pair(1, "question", "yes", "no").record
    assert inspect("preferences", {**record, **change}).fault == fault


def test_personal_data_is_seen_in_calls_and_results():
    record = pair(1, "question", "yes", "no").record
    for change, found in (
        ({"chosen": CALLED}, {"card number"}),
        ({"prompt": [ASKED, CALLED, RESULT]}, {"card number", "e-mail"}),
    ):
        assert {kind for text in texts({**record, **change}) if (kind := personal_data(text))} == found


def test_copies_and_contradictions_are_seen_in_calls_whatever_their_ids():
    record = pair(1, "question", "yes", "no").record

    def key(call_id: str, card: int, *, swapped: bool = False) -> tuple[bytes, bytes]:
        function = {"name": "pay", "arguments": {"card": card}}
        call = CALLED | {"tool_calls": [{"id": call_id, "type": "function", "function": function}]}
        answers = {"chosen": "no", "rejected": call} if swapped else {"chosen": call, "rejected": "no"}
        found = key_of("preferences", inspect("preferences", {**record, **answers}))
        return found.content, found.swapped

    assert key("a", 1) == key("b", 1) != key("a", 2)
    assert key("a", 1) == key("b", 1, swapped=True)[::-1]


@pytest.mark.parametrize(
    ("category", "fault"),
    [
        (None, None),
        ("law", None),
        (3, "category is int, not text"),
        ("\ud800", "category holds half a surrogate pair, which is no character"),
    ],
)
def test_a_category_is_a_text_or_nothing_and_no_text_of_the_row(category, fault):
    record = Prompt(
        "1", "train", "raw.jsonl", 1, [{"role": "user", "content": "asked"}], ["answer"], category
    )._asdict()
    assert inspect("prompts", record).fault == fault
    assert list(texts(record)) == ["user", "asked", "answer"]


@pytest.mark.parametrize(
    ("annotator", "fault"),
    [
        (None, None),
        ("ann@shop.org", None),
        (3, "annotator is int, not text"),
        ("\ud800", "annotator holds half a surrogate pair, which is no character"),
    ],
)
def test_an_annotator_is_a_text_or_nothing_and_no_text_of_the_row(annotator, fault):
    asked: list[Message] = [{"role": "user", "content": "asked"}]
    written = Demonstration("1", "train", "raw.jsonl", 1, asked, "answer", annotator)._asdict()
    chosen = Preference("1", "train", "raw.jsonl", 1, asked, "answer", "other", annotator)._asdict()
    assert inspect("demonstrations", written).fault == fault
    assert inspect("preferences", chosen).fault == fault
    assert list(texts(written)) == ["user", "asked", "answer"]


def test_tidy_keeps_what_annotators_judge():
    assert tidy(" cafe\u0301\n") == "caf\u00e9"
    assert tidy("a\n  b") == "a\n  b"
    assert tidy("STOP") != tidy("stop")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a\ufffd", "replacement character"),
        ("a\x07", "NUL or control character"),
        ("a\ud83d", "half a surrogate pair"),
        *(
            (good.encode().decode("cp1252"), "mojibake")
            for good in ("café", "it\u2019s", "price: 3 €", "naïve ™", "wait…", "😀")
        ),
        ("привет".encode().decode("latin-1"), "mojibake"),
        ("你好".encode().decode("latin-1"), "mojibake"),
    ],
)
def test_encoding_damage_is_found(text, kind):
    assert kind in (encoding_damage(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\r\n",
        "„Spaß“ \u2013 MENÜ\u2013KARTE…",
        "«résumé»… voilà",
        "NÃO ÂNGULO",
        "привет",
        "你好世界",
        "日本語",
        "😀👍🏽",
        "5 °C £3",
    ],
)
def test_sound_text_is_not_damaged(text):
    assert encoding_damage(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.lee+x@mail.example.co.uk.", "e-mail"),
        ("call +49 (0)30 1234567 now", "phone number"),
        ("call (212) 555-0123.", "phone number"),
        ("call 212-555-0123", "phone number"),
        ("06 12 34 56 78", "phone number"),
        ("card 4111 1111 1111 1111 please", "card number"),
        ("from 192.168.10.7:", "IP address"),
        ("from 2001:db8:0:0:0:0:0:1", "IP address"),
    ],
)
def test_personal_data_is_found(text, kind):
    assert personal_data(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        *(f"My order is #{number}." for number in ("4821", "48213", "482135", "4821350", "48213507")),
        "card 4111 1111 1111 1112",  # fails Luhn's sum
        "2024-01-31 12:34:56",
        "ISBN 978-3-16-148410-0",
        "version 1.2.3.4.5 or 300.1.1.1 or 127.0.0.1",
        "a @ b, @name, 1,000,000.00, 1990-2020",
    ],
)
def test_other_numbers_are_no_personal_data(text):
    assert personal_data(text) is None


def keys(rows: list[Row], kind: Kind = "preferences") -> Keys:
    columns = zip(*(key_of(kind, row) for row in rows), strict=True)
    return Keys(*(np.array(column, f"S{HASH_BYTES}") for column in columns))


def test_copies_name_the_first_row():
    rows = [pair(1, "q", "a", "b"), pair(2, "q", "b", "a"), pair(3, "q ", "a", " b"), pair(4, "Q", "a", "b")]
    assert copies(keys(rows)).tolist() == [-1, -1, 0, -1]


def test_contradictions_condemn_both_sides():
    rows = [pair(1, "q", "a", "b"), pair(2, "q", "b", "a"), pair(3, "other", "b", "a"), pair(4, "q", "a", "a")]
    assert contradictions(keys(rows)).tolist() == [1, 0, -1, -1]


def test_rows_of_a_wrong_shape_are_like_no_other():
    faulty = [inspect("preferences", {"id": "1", "prompt": []})] * 2
    for found in (copies(keys(faulty)), contradictions(keys(faulty)), shared_prompts(keys(faulty), np.array([0, 2]))):
        assert found.tolist() == [-1, -1]


def test_a_shared_prompt_stays_where_it_is_held_out_the_longest():
    rows = [pair(n, "q", f"a{n}", "b") for n in range(4)]
    splits = np.array([SPLITS.index(split) for split in ("train", "validation", "test", "test")])
    assert shared_prompts(keys(rows), splits).tolist() == [2, 2, -1, -1]
    assert shared_prompts(keys(rows[:2]), splits[:2]).tolist() == [1, -1]


LONG = "a b c d e f g h i j k l m n o"  # 15 words
NINE = "one two three four five six seven eight nine"


@pytest.mark.parametrize(
    ("asked", "text", "found"),
    [
        ("unrelated", f"x {LONG[:25]} y", True),  # a to m: 13 words in a row
        ("unrelated", f"x {LONG[:23]} y", False),  # a to l: 12
        ("unrelated", f"Well: {NINE.upper()}!", True),  # a message of nine words, whole
        ("unrelated", NINE.removeprefix("one "), False),
        ("Short, question", "", True),  # below eight words: only where it is all that is asked
        ("A short question", "short question", False),
    ],
)
def test_contamination_by_words_in_a_row(asked, text, found):
    questions = [Question(7, [LONG]), Question(8, [NINE]), Question(9, ["short question?"])]
    places = find_contamination(questions, [Study(3, [asked], [asked, text])])
    assert list(places) == ([3] if found else [])


def test_runs_do_not_span_two_texts():
    first, second = LONG[:13], LONG[14:]
    assert find_contamination([Question(1, [LONG])], [Study(0, ["?"], [first, second])]) == {}


def test_a_phrase_that_many_prompts_share_is_no_contamination():
    studies = [Study(number, [f"prompt {number}"], [LONG]) for number in range(COMMON + 1)]
    assert find_contamination([Question(50, [LONG])], studies[:-1]) == dict.fromkeys(range(COMMON), 50)
    assert find_contamination([Question(50, [LONG])], studies) == {}


def given_away_by_definition(questions: list[Question], studies: list[Study]) -> dict[int, int]:
    """Word for word, as docs/validation.md says it."""

    def runs(question: Question) -> list[tuple[str, ...]]:
        messages = [tuple(message.split()) for message in question.asked]
        return [
            message[start : start + 13]
            for message in messages
            if len(message) >= 8
            for start in range(max(1, len(message) - 12))
        ]

    def held(study: Study, run: tuple[str, ...]) -> bool:
        return any(f" {' '.join(run)} " in f" {text} " for text in study.texts)

    found = {}
    for study in studies:
        whole = [question.number for question in questions if question.asked == study.asked]
        shared = [
            question.number
            for question in questions
            for run in runs(question)
            if held(study, run) and len({tuple(each.asked) for each in studies if held(each, run)}) <= COMMON
        ]
        if whole or shared:
            found[study.number] = (whole or shared)[0]
    return found


def test_contamination_is_what_its_definition_says(monkeypatch):
    monkeypatch.setattr(contamination, "_TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(contamination, "_WORDS_REMEMBERED", 3)
    source = random.Random(0)

    def say(most: int) -> str:
        return " ".join(source.choices("ab", weights=[9, 1], k=source.randint(1, most)))

    questions = [Question(number, [say(18)]) for number in range(12)]
    asked = [[say(10)] for _ in range(40)]
    studies = [Study(number, each, [*each, say(30)]) for number, each in enumerate(asked, start=100)]
    expected = given_away_by_definition(questions, studies)
    assert 0 < len(expected) < len(studies)
    assert find_contamination(questions, studies).keys() == expected.keys()


@pytest.mark.slow
def test_an_exception_inside_an_expectation_raises():
    from great_expectations import expectations as gxe

    context = data_context()
    table = pd.DataFrame({"tokens": [1.0, 2.0]})
    broken = gxe.ExpectColumnValuesToBeBetween(column="absent", max_value=1, meta={"check": "length"})
    with pytest.raises(RuntimeError, match="length in the suite broken could not be computed"):
        run_expectations(context, "broken", table, [broken])


@pytest.mark.slow
def test_a_verdict_names_the_failing_rows():
    from great_expectations import expectations as gxe

    context = data_context()
    table = pd.DataFrame({"tokens": [1.0, 9.0, None, 8.0]}, index=[7, 5, 3, 1])
    short = gxe.ExpectColumnValuesToBeBetween(column="tokens", max_value=5, meta={"check": "length"})
    (result,) = run_expectations(context, "lengths", table, [short])
    assert (result.check, result.success, result.rows) == ("length", False, [1, 3])
