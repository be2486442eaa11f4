"""JSON without doubles, and its faults in words."""

import pytest

from tasks.common.strict_json import JsonError, parse_json


def test_json_is_read_as_ever():
    assert parse_json('{"a": [1, 2.5, {"a": null}], "b": {"a": "\\u00e9"}}') == {
        "a": [1, 2.5, {"a": None}],
        "b": {"a": "é"},
    }


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        ('{"a": 1, "a": 1}', "names the key 'a' twice in one object", "rename or remove one"),
        ('[{"b": {"c": [{"a": 1, "b": 2, "a": 3}]}}]', "names the key 'a' twice", "rename or remove one"),
        ('{"a": ' + "1" * 5000 + "}", "has a number of more than 4,300 digits", "write it as a text, in quotes"),
        (
            "[" * 3000 + "]" * 3000,
            "is not valid JSON (lists or objects nested too deeply)",
            "write it with fewer levels",
        ),
        ('{"a": 1}\r{"a": 2}\r', r"has old Mac line ends (\r alone)", r"convert them, as in tr '\r' '\n' < old > new"),
        ('{"a": ', "is not valid JSON, perhaps cut off (Expecting value)", None),
    ],
)
def test_faults(text, message, cure):
    with pytest.raises(JsonError) as error:
        parse_json(text)
    assert message in str(error.value)
    assert error.value.cure == cure


def test_what_follows_is_distinguished_from_what_is_broken():
    for text, goes_on in (('{"a": 1}\n{"a": 2}', True), ('{"a": 1', False)):
        with pytest.raises(JsonError) as error:
            parse_json(text)
        assert error.value.goes_on is goes_on
