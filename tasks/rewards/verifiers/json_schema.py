"""Whether an answer is JSON that a JSON Schema (2020-12) describes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import regex
from jsonschema import Draft202012Validator, SchemaError, ValidationError, validators
from pydantic import Field
from referencing import Registry
from referencing.exceptions import Unresolvable

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import score_by_key

LONGEST = 100_000  # characters of an answer that are read
SECONDS = 1.0  # for a pattern of the schema
FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


def json_schema(
    answers: Sequence[str],
    columns: Sequence[Mapping[str, Any]],
    *,
    schema: dict[str, Any] | None = None,
    column: str | None = None,
    required: Annotated[list[str], Field(min_length=1)] | None = None,
    fenced: bool = True,
    otherwise: float | None = None,
) -> list[float]:
    """Score n answers: 1 for valid JSON that fits the schema, else 0.

    Args:
        answers: the texts.
        columns: the rows' extra columns.
        schema: of all answers.
        column: in place of a schema, the column that holds each row's own, or its text.
        required: in place of a schema, the keys that an object must have, none of them null, "" or empty.
        fenced: whether the answer may be the one ```json block of a longer text.
        otherwise: the score for rows without a schema.

    Raises:
        InputError: there is no schema, or it is none; or there is one in several places.
    """
    if [schema, column, required].count(None) != 2:
        raise InputError("it needs one of schema, column and required: correct its options")
    if column is None:
        of_all = _validator(schema if required is None else _of_keys(required))
        return [float(_fits(answer, of_all, fenced)) for answer in answers]
    return score_by_key(
        lambda answer, own, _: float(_fits(answer, _validator(own), fenced)),
        answers,
        [()] * len(answers),
        columns,
        column=column,
        otherwise=otherwise,
    )


def _of_keys(names: Sequence[str]) -> dict[str, Any]:
    is_something: dict[str, Any] = {"not": {"enum": [None, "", [], {}]}}
    return {"type": "object", "required": list(names), "properties": dict.fromkeys(names, is_something)}


def _fits(answer: str, validator: Any, fenced: bool) -> bool:  # noqa: ANN401 - jsonschema has no types
    blocks = FENCED.findall(answer[:LONGEST]) if fenced else []
    try:
        value = json.loads(blocks[0] if len(blocks) == 1 else answer[:LONGEST], parse_constant=_refuse)
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError, OverflowError, TimeoutError):  # also of numbers that are too large
        return False
    except Unresolvable as error:
        raise InputError(f"its schema refers to what is not in it ({error}): put it there") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _validator(schema: object) -> Any:  # noqa: ANN401 - jsonschema has no types
    try:
        found = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(found, dict):
            raise InputError(f"{quoted(schema)} is no JSON Schema: correct it")
        Draft202012Validator.check_schema(found)
    except (ValueError, SchemaError) as error:
        reason = error.message if isinstance(error, SchemaError) else error
        raise InputError(f"{quoted(schema)} is no JSON Schema ({reason}): correct it") from None
    # An empty registry: a schema does not reach for the network.
    return Bounded(found, registry=Registry())


def _matches(_: object, pattern: str, text: object, __: object) -> Iterator[ValidationError]:
    if isinstance(text, str) and not regex.search(pattern, text, timeout=SECONDS):
        yield ValidationError(f"{quoted(text)} does not match {quoted(pattern)}")


Bounded = validators.extend(Draft202012Validator, {"pattern": _matches})
