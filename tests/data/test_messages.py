"""Messages: the role, the text, whether it may be learned, and nothing beside it that is dropped."""

import pytest

from tasks.data.shapes.messages import as_messages, context_only
from tasks.data.shapes.values import IgnorableError, ShapeError, as_text, is_nothing, is_yes, listed
from tasks.data.sources.raw_rows import Unreadable
from tests.data.test_conversations import assistant, system, user


def test_share_gpt_keys_and_roles():
    conversation = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    assert as_messages(conversation, "conversations") == [system("s"), user("u"), assistant("a")]


def test_keys_that_hold_nothing_are_no_harm():
    assert as_messages(
        [{"role": "User", "content": "u", "name": None, "tool_calls": [], "thinking": ""}], "messages"
    ) == [user("u")]


@pytest.mark.parametrize(("role", "content"), [("role", "content"), ("from", "value")])
def test_parts_that_are_texts_are_a_line_each(role: str, content: str):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "text", "text": "2 + 2", "image_url": None}]
    found = as_messages([{role: "user", content: parts}, {role: "assistant", content: parts[1:]}], "messages")
    assert found == [user("What is this?\n2 + 2"), assistant("2 + 2")]


def test_transcript():
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHow are you?\n\nHuman: Fine\n\nAssistant:"
    assert as_messages(text, "chosen") == [user("Hi"), assistant("Hello.\n\nHow are you?"), user("Fine"), assistant("")]


@pytest.mark.parametrize(
    ("value", "message"),
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
def test_bad_text(value, message):
    with pytest.raises(ShapeError) as error:
        as_text(value, "x")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Hi", "x is a text where a list of messages is needed"),
        ([], "x is an empty list"),
        (["Hi"], "message 1 of x is a text where {role, content} is needed"),
        ([{"role": "user"}], "message 1 of x has the keys role where role and content are needed"),
        ([{"role": "user", "content": None}], "the content of message 1 of x is null where a text is needed"),
        ([user("u"), {"role": "wizard", "content": "t"}], "message 2 of x has the role 'wizard' where one of system"),
        ([{"from": 1, "value": "t"}], "the from of message 1 of x is the number 1"),
        ([user("u") | {"content": []}], "the content of message 1 of x is a list where a text is needed"),
        (
            [user("u") | {"content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
            "part 2 of the content of message 1 of x has the type the text 'image' where text is needed: images, audio",
        ),
        ([user("u") | {"content": [{"text": "a"}]}], "part 1 of the content of message 1 of x has no type where text"),
        ([user("u") | {"content": ["a"]}], "part 1 of the content of message 1 of x is a text where {type: text, tex"),
        ([user("u") | {"content": [{"type": "text"}]}], "the text of part 1 of the content of message 1 of x is null"),
        (
            [user("u") | {"content": [{"type": "text", "text": "a", "image_url": {"url": "u"}}]}],
            "part 1 of the content of message 1 of x holds image_url beside its text, which is not read",
        ),
    ],
)
def test_bad_messages(value, message):
    with pytest.raises(ShapeError) as error:
        as_messages(value, "x")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        {"reasoning_content": "r"},
        {"thinking": "t"},
        {"reasoning": {"a": 1}},
        {"tool_call_id": "7"},
        {"images": ["a.png"]},
        {"audio": {"id": 1}},
        {"name": "ann"},
        {"anything": False},
        {"anything": 0},
        {"value": "written otherwise"},
    ],
)
def test_what_a_message_holds_beside_its_text_is_refused(more):
    [key] = more
    with pytest.raises(IgnorableError) as error:
        as_messages([user("u"), assistant("a") | more], "messages")
    assert str(error.value) == f"message 2 of messages holds {key} beside its text, which is not read"


@pytest.mark.parametrize(
    ("weight", "is_context"),
    [
        ({"weight": 0}, True),
        ({"weight": 0.0}, True),
        ({"train": False}, True),
        ({"train": 0}, True),
        ({"weight": 0, "train": False}, True),
        ({"weight": 1}, False),
        ({"weight": 1.0, "train": None}, False),
        ({"train": True}, False),
        ({"weight": None}, False),
        ({"weight": float("nan")}, False),
        ({}, False),
    ],
)
def test_weights_of_a_message(weight, is_context):
    messages = [user("u"), assistant("a") | weight]
    assert as_messages(messages, "messages") == [user("u"), assistant("a")]
    assert context_only(messages) == [1] * is_context


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            {"weight": 0.5},
            "the weight of message 1 of messages is the number 0.5 where 1 or 0, true or false is needed",
        ),
        ({"weight": -1}, "the weight of message 1 of messages is the number -1 where"),
        ({"weight": 2}, "is the number 2 where"),
        ({"weight": "0"}, "the weight of message 1 of messages is the text '0' where 1 or 0"),
        ({"train": "no"}, "the train of message 1 of messages is the text 'no' where"),
        ({"train": [1]}, "is a list where"),
        ({"weight": 1, "train": False}, "the weight and train of message 1 of messages say different things"),
    ],
)
def test_other_weights_are_refused(weight, message):
    with pytest.raises(ShapeError) as error:
        as_messages([assistant("a") | weight], "messages")
    assert message in str(error.value)


@pytest.mark.parametrize("weight", [{"weight": 1}, {"train": True}])
def test_only_what_the_assistant_says_can_be_learned(weight):
    with pytest.raises(ShapeError, match="message 1 of messages is to be learned, but only what the assistant says is"):
        as_messages([user("u") | weight], "messages")
    assert as_messages([user("u") | {"weight": 0, "train": False}], "messages") == [user("u")]


@pytest.mark.parametrize("value", [None, "", [], {}, float("nan")])
def test_nothing_is_nothing(value):
    assert is_nothing(value)
    assert is_yes(value, "x") is None


@pytest.mark.parametrize("value", [0, False, " ", [None], {"a": None}, 0.0])
def test_something_is_not(value):
    assert not is_nothing(value)


def test_a_value_that_cannot_be_read_says_why():
    with pytest.raises(ShapeError, match=r"^x is a value that cannot be read \(date value out of range\) where a text"):
        as_text(Unreadable("date value out of range"), "x")


def test_numbers_of_any_length_have_a_short_name():
    for digits in (100, 4000, 100_000):
        with pytest.raises(ShapeError) as error:
            as_text(10**digits, "x")
        assert len(str(error.value)) < 120


def test_names_of_keys_are_listed_as_far_as_a_sentence_can():
    assert listed(["a", 1]) == "a, 1"
    assert listed(["k" * 5_000_000]) == "k" * 40 + "…"
    assert listed(f"c{n}" for n in range(10**6)) == ", ".join(f"c{n}" for n in range(20)) + ", …"
