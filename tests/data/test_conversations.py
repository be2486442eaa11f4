"""Messages, transcripts, turns, and the prompt that two whole conversations share."""

import pytest
from hypothesis import given, strategies

from tasks.data.records import Message
from tasks.data.shapes.conversations import (
    Pair,
    Turn,
    answered_turns,
    as_answer,
    as_pair,
    as_prompt,
    with_system,
)
from tasks.data.shapes.values import ShapeError


def system(content: str) -> Message:
    return Message(role="system", content=content)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


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
    ("value", "message"),
    [
        ({"text": "Hi"}, "message 1 of prompt has the keys text"),
        (7, "prompt is the number 7"),
        ([user("u"), assistant("a")], "prompt ends with the assistant where the user must speak last"),
        ([system("s")], "prompt ends with the system"),
    ],
)
def test_bad_prompt(value, message):
    with pytest.raises(ShapeError) as error:
        as_prompt(value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([user("u")], "chosen ends with the user where the assistant's answer is needed"),
        ([user("v"), assistant("a")], "chosen is a conversation that does not go on from the prompt"),
        (None, "chosen is null"),
    ],
)
def test_bad_answer(value, message):
    with pytest.raises(ShapeError) as error:
        as_answer(value, [user("u")], "chosen")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
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
def test_bad_pair(chosen, rejected, message):
    with pytest.raises(ShapeError) as error:
        as_pair(chosen, rejected)
    assert message in str(error.value)


def test_a_conversation_tells_which_answers_are_only_context():
    conversation = [user("1"), assistant("wrong"), user("2"), assistant("right")]
    assert list(answered_turns(conversation, [1])) == [
        Turn(conversation[:1], "wrong", is_context=True),
        Turn(conversation[:3], "right"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        "Human: Hi\n\nAssistant: Hello",  # asked for a dialogue, this is the answer
        "\n\nHuman: u?\n\nAssistant: a",
        "Human: u\n\nAssistant: a\n\nHuman: v",  # it ends with the user: no answer
        "Human: v\n\nAssistant: a\n\nHuman: u",
        "Assistant: a\n\nAssistant: b",
    ],
)
def test_an_answer_that_quotes_a_dialogue_is_plain(value):
    assert as_answer(value, [user("u")], "chosen") == Turn([user("u")], value)


def test_a_dialogue_that_repeats_the_prompt_is_no_quote():
    given = [system("s"), user(" u\n")]
    assert as_answer("\n\nHuman: u\n\nAssistant: a", given, "chosen") == Turn(given, "a")
    long = "\n\nHuman: 1\n\nAssistant: a\n\nHuman: u\n\nAssistant: b"
    assert as_answer(long, [user("u")], "chosen") == Turn([user("1"), assistant("a"), user("u")], "b")


def test_an_answer_in_a_message_is_what_it_says():
    text = "\n\nHuman: u\n\nAssistant: a"
    assert as_answer(assistant(text), [user("u")], "chosen") == Turn([user("u")], text)


def test_a_prompt_that_quotes_a_dialogue_is_refused_with_the_cure():
    with pytest.raises(ShapeError, match="a prompt that quotes a dialogue goes into one message"):
        as_prompt("Human: Hi\n\nAssistant: Hello")
    assert as_prompt(user("Human: Hi\n\nAssistant: Hello")) == [user("Human: Hi\n\nAssistant: Hello")]


@pytest.mark.parametrize("value", [[user("u"), assistant("a") | {"weight": 0}], assistant("a") | {"train": False}])
def test_an_answer_that_is_not_to_be_learned_is_refused(value):
    with pytest.raises(ShapeError, match="chosen is an answer that is not to be learned, by its weight or train"):
        as_answer(value, [user("u")], "chosen")
