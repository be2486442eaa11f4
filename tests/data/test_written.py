"""Conversations written out as text are read; texts about conversations are left alone."""

import json

import pytest
from hypothesis import given, strategies

from tasks.data.shapes.serialized import LONGEST_PYTHON, read_written, read_written_texts
from tasks.data.shapes.values import ShapeError

TALK = [{"role": "user", "content": "It's “2+2”?\n"}, {"role": "assistant", "content": 'He wrote "4"'}]
GPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize("messages", [TALK, GPT, TALK[:1], TALK[1], [{"content": "no role first", "role": "User"}]])
@pytest.mark.parametrize(
    "write", [json.dumps, str, lambda messages: f"\n {json.dumps(messages, indent=2, ensure_ascii=False)}"]
)
def test_messages_are_read_in_either_dialect(messages, write):
    assert read_written(write(messages), "chosen") == messages


def test_json_of_json_is_read():
    assert read_written(json.dumps(json.dumps(TALK)), "chosen") == TALK


@pytest.mark.parametrize(
    "text",
    [
        "Hi",
        "",
        '"[1, 2]"',
        '"[quoted] speech"',
        '"{"',
        f'"{TALK}" is a list',
        '{"answer": 4}',
        '[1, 2, {"role": "user", "content": "x"}]',
        '{"from": "Paris", "value": 3}',  # an object, but nobody of a conversation speaks
        '[{"role": "admin", "content": "x"}]',
        '{"role": "user"}',
        '{"a": 1, "a": 2}',
        "{'a': 1, 'a': 2}",
        f"{json.dumps(TALK)}\n\nThat is the format.",
        f"```json\n{json.dumps(TALK)}\n```",
        '[{"role": "user", "content": "x"',  # it is cut off, or goes on in words
        "[]",
        "[{'role': " + "[" * 3000 + "]" * 3000 + "}]",
        "[{'role': " + "-" * 100_000 + "1}]",
        "[{'content': '" + "x" * LONGEST_PYTHON + "'}]",
    ],
)
def test_any_other_text_is_left_as_it_is(text):
    assert read_written(text, "chosen") == text


@pytest.mark.parametrize("value", [None, 4, TALK, {"role": "user", "content": "Hi"}])
def test_what_is_no_text_is_left_as_it_is(value):
    assert read_written(value, "chosen") is value


@pytest.mark.parametrize(
    "text",
    [
        "[{'content': 'Hi', 'role': 'user'}\n {'content': 'Hello', 'role': 'assistant'}]",  # numpy, in a CSV of pandas
        "array([{'content': 'Hi', 'role': 'user'}], dtype=object)",
        '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He wrote "4""}]',
        '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4",}]\n'.replace("4", "a\nb"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text):
    with pytest.raises(ShapeError, match="chosen looks like a conversation written out as a text, but is neither JSON"):
        read_written(text, "chosen")


def test_a_key_that_stands_twice_is_refused():
    with pytest.raises(ShapeError, match="chosen names the key 'content' twice"):
        read_written('[{"role": "user", "content": "a", "content": "b"}]', "chosen")


def test_no_text_takes_long():
    for end in (" " * 100_000 + "x", "}" * 100_000, ("}" + " " * 300) * 1000 + "x", "] " * 100_000, "\\" * 100_000):
        text = '[{"role": "user", "content": "x"}]' + end
        assert read_written(text, "chosen") == text


@given(strategies.lists(strategies.text(), min_size=1))
def test_no_text_in_a_message_is_changed(texts):
    messages = [{"role": "user", "content": text} for text in texts]
    assert read_written(json.dumps(messages), "messages") == messages
    assert read_written(str(messages), "messages") == messages


@pytest.mark.parametrize("texts", [["4"], ["it's", 'he wrote "4"', "ü\n"]])
def test_a_list_of_texts_is_read(texts):
    assert read_written_texts(json.dumps(texts), "references") == texts
    assert read_written_texts(str(texts), "references") == texts


@pytest.mark.parametrize("value", ["4", "[4]", "[]", '["a", 4]', '["a"] or ["b"]', '["a', None, ["a"]])
def test_any_other_reference_is_left_as_it_is(value):
    assert read_written_texts(value, "references") == value
