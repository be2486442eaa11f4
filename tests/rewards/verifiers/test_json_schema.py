import json
from typing import Any

import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "json_schema"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Ann", "age": 3}', 1),
        (' \n{"name": "Ann", "age": 3}\n', 1),
        ('Here it is:\n```json\n{"name": "Ann", "age": 3}\n```\nAnything else?', 1),
        ('```\n{"name": "Ann", "age": 3}\n```', 1),
        ('```json\n{"name": "Ann", "age": 3}\n```\n```json\n{}\n```', 0),
        ('Here it is: {"name": "Ann", "age": 3}', 0),
        ('{"name": "Ann", "age": 3} {"name": "Ann", "age": 3}', 0),
        ('{"name": "", "age": 3}', 0),
        ('{"name": "Ann", "age": "3"}', 0),
        ('{"name": "Ann", "age": NaN}', 0),
        ('{"name": "Ann", "age": 3, "more": 1}', 0),
        ("{'name': 'Ann', 'age': 3}", 0),
        ("{}", 0),
        ("null", 0),
        ("", 0),
        ("The answer is correct.", 0),
        (json.dumps(PERSON), 0),
        ("[" * 50_000, 0),
        ('{"a":' * 50_000, 0),
        ('{"name": "Ann", "age": ' + "9" * 50_000 + "}", 0),
        ('{"name": "Ann", "age": 1e999}', 0),
        ('{"name": "' + "a" * 200_000 + '", "age": 3}', 0),
    ],
)
def test_json_that_fits_is_right(answer: str, score: float):
    assert scored(NAME, answer, schema=PERSON) == score


def test_a_fence_may_be_forbidden():
    assert scored(NAME, "```json\n{}\n```", schema={"type": "object"}, fenced=False) == 0


@pytest.mark.parametrize(("answer", "score"), [('{"a": 1, "b": 0}', 1), ('{"a": 1}', 0), ('{"a": 1, "b": ""}', 0)])
def test_keys_that_must_be_there_need_no_schema(answer: str, score: float):
    assert scored(NAME, answer, required=["a", "b"]) == score


@pytest.mark.parametrize("own", [PERSON, json.dumps(PERSON)])
def test_each_row_may_have_its_own(own: object):
    assert scored(NAME, '{"name": "Ann", "age": 3}', row={"of": own}, column="of") == 1
    assert scored(NAME, "{}", row={"of": own}, column="of") == 0
    assert scored(NAME, "{}", row={}, column="of", otherwise=0.5) == 0.5


@pytest.mark.slow
def test_a_pattern_that_would_never_end_is_given_up():
    assert scored(NAME, json.dumps("a" * 60 + "!"), schema={"pattern": r"^(a|aa)+$"}) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "it needs one of schema, column and required"),
        ({"schema": {}, "required": ["a"]}, "it needs one of schema, column and required"),
        ({"schema": {"type": "text"}}, "is no JSON Schema ('text' is not valid under any of the given schemas)"),
        ({"schema": {"$ref": "https://example.org/schema"}}, "its schema refers to what is not in it"),
        ({"column": "broken"}, "'{' is no JSON Schema (Expecting property name"),
        ({"column": "number"}, "3 is no JSON Schema: correct it"),
        ({"column": "none"}, "its row has no 'none'; give it one"),
    ],
)
def test_what_is_no_schema_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError) as refused:
        scored(NAME, "{}", row={"broken": "{", "number": 3}, **options)
    assert message in str(refused.value)
