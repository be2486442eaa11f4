"""Messages, transcripts, turns, and the prompt that two whole conversations share."""

import pytest
from hypothesis import given, strategies

from tasks.data.conversations import (
    Pair,
    Turn,
    answered_turns,
    as_answer,
    as_pair,
    as_prompt,
    with_system,
)
from tasks.data.messages import ShapeError, as_messages, as_text
from tasks.data.records import Message


def system(content: str) -> Message:
    return Message(role="system", content=content)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def test_share_gpt_keys_and_roles():
    conversation = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    assert as_messages(conversation, "conversations") == [system("s"), user("u"), assistant("a")]


def test_other_keys_of_a_message_are_left_out():
    assert as_messages([{"role": "User", "content": "u", "name": None}], "messages") == [user("u")]


def test_transcript():
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHow are you?\n\nHuman: Fine\n\nAssistant:"
    assert as_messages(text, "chosen") == [user("Hi"), assistant("Hello.\n\nHow are you?"), user("Fine"), assistant("")]


def test_prompt_of_each_form():
    assert as_prompt(" Hi ") == [user(" Hi ")]
    assert as_prompt("") == [user("")]
    assert as_prompt({"role": "user", "content": "Hi"}) == [user("Hi")]
    assert as_prompt([system("s"), user("Hi")]) == [system("s"), user("Hi")]
    assert as_prompt("\n\nHuman: Hi\n\nAssistant:") == [user("Hi")]
    assert as_prompt("Human: is this one word?") == [user("Human: is this one word?")]


def test_system_text_goes_first_and_only_once():
    assert as_prompt("Hi", "Be kind.") == [system("Be kind."), user("Hi")]
    assert as_prompt("Hi", "") == as_prompt("Hi", None) == [user("Hi")]
    assert with_system([system("s"), user("u")], "s") == [system("s"), user("u")]
    with pytest.raises(ShapeError, match="two different system messages"):
        with_system([system("s"), user("u")], "t")


def test_every_answer_of_a_conversation_has_its_history_as_prompt():
    conversation = [system("s"), user("1"), assistant("a"), user("2"), assistant("b"), user("3")]
    assert list(answered_turns(conversation)) == [Turn(conversation[:2], "a"), Turn(conversation[:4], "b")]


def test_an_assistant_turn_that_answers_nobody_is_only_history():
    conversation = [assistant("Hello"), user("1"), assistant("a"), assistant("and b")]
    assert list(answered_turns(conversation)) == [Turn([assistant("Hello"), user("1")], "a")]


@pytest.mark.parametrize(
    "value",
    [
        "a",
        assistant("a"),
        [assistant("a")],
        [user("u"), assistant("a")],
        "\n\nHuman: u\n\nAssistant: a",
    ],
)
def test_answer_of_each_form(value):
    assert as_answer(value, [user("u")], "chosen") == Turn([user("u")], "a")


def test_answer_whose_conversation_tells_more_or_less_than_the_prompt():
    longer, shorter = [system("s"), user("u")], [user("u")]
    assert as_answer([*longer, assistant("a")], shorter, "chosen").prompt == longer
    assert as_answer([*shorter, assistant("a")], longer, "chosen").prompt == longer


def test_plain_answer_is_left_as_it_is():
    assert as_answer(" u: a\n", [user("u")], "response").response == " u: a\n"


def test_pair_of_conversations():
    history = [user("1"), assistant("a"), user("2")]
    assert as_pair([*history, assistant("b")], [*history, assistant("c")]) == Pair(history, "b", "c")
    assert as_pair([*history, assistant("b")], [*history, assistant("b")]) == Pair(history, "b", "b")


def test_pair_of_transcripts():
    chosen = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Help\n\nAssistant: Of course"
    rejected = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Help\n\nAssistant:"
    assert as_pair(chosen, rejected) == Pair([user("Hi"), assistant("Hello"), user("Help")], "Of course", "")


def test_pair_of_plain_texts_is_cut_at_a_line_or_else_a_word():
    assert as_pair("2+2?\nThe sum is 4.", "2+2?\nThe sum is 5.") == Pair(
        [user("2+2?")], "The sum is 4.", "The sum is 5."
    )
    assert as_pair("What is up? Fine", "What is up? Fire") == Pair([user("What is up?")], "Fine", "Fire")
    assert as_pair("2+2?\n", "2+2?\nno") == Pair([user("2+2?")], "", "no")


WORDS = strategies.text(alphabet="abc ", min_size=1).map(str.strip).filter(bool)


@given(WORDS, WORDS, WORDS)
def test_plain_pair_loses_nothing_but_the_space_at_the_seam(question, first, second):
    shared = f"{question}\n"
    found = as_pair(shared + first, shared + second)
    assert found == Pair([user(question)], first, second)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "x is null where a text is needed"),
        (4, "x is the number 4 where"),
        (10**400, "x is the number 1000"),
        (True, "x is the truth value True where"),
        (float("nan"), "x is NaN, a missing value, where"),
        ({}, "x is an object where"),
        ([], "x is a list where"),
        (b"", "x is of the type bytes where"),
        ("a\ud800", "x holds half a character ('\\ud800') at position 1"),
    ],
)
def test_bad_text(value, said):
    with pytest.raises(ShapeError) as error:
        as_text(value, "x")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Hi", "x is a text where a list of messages is needed"),
        ([], "x is an empty list"),
        (["Hi"], "message 1 of x is a text where {role, content} is needed"),
        ([{"role": "user"}], "message 1 of x has the keys role where role and content are needed"),
        ([{"role": "user", "content": None}], "the content of message 1 of x is null where a text is needed"),
        ([user("u"), {"role": "tool", "content": "t"}], "message 2 of x has the role 'tool' where one of system"),
        ([{"from": 1, "value": "t"}], "the from of message 1 of x is the number 1"),
    ],
)
def test_bad_messages(value, said):
    with pytest.raises(ShapeError) as error:
        as_messages(value, "x")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"text": "Hi"}, "message 1 of prompt has the keys text"),
        (7, "prompt is the number 7"),
        ([user("u"), assistant("a")], "prompt ends with the assistant where the user must speak last"),
        ([system("s")], "prompt ends with the system"),
    ],
)
def test_bad_prompt(value, said):
    with pytest.raises(ShapeError) as error:
        as_prompt(value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([user("u")], "chosen ends with the user where the assistant's answer is needed"),
        ([user("v"), assistant("a")], "chosen is a conversation that does not go on from the prompt"),
        (None, "chosen is null"),
    ],
)
def test_bad_answer(value, said):
    with pytest.raises(ShapeError) as error:
        as_answer(value, [user("u")], "chosen")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        ("yes", "no", "share no beginning"),
        ("yes", [user("u"), assistant("a")], "one of chosen and rejected is a conversation"),
        ([user("u"), assistant("a")], [user("v"), assistant("a")], "differ before their last turn"),
        ([user("u"), assistant("a")], [user("u"), assistant("a"), user("v"), assistant("b")], "differ before"),
        ([assistant("a")], [assistant("b")], "chosen and rejected share is empty where the user must speak last"),
        (3, 4, "chosen is the number 3"),
        ("yes", None, "rejected is null"),
    ],
)
def test_bad_pair(chosen, rejected, said):
    with pytest.raises(ShapeError) as error:
        as_pair(chosen, rejected)
    assert said in str(error.value)
