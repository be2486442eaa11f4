"""Functions that may be called, and calls of them, as people write them: as OpenAI has them, or as ShareGPT.

OpenAI: {type: function, function: {name, arguments}}, arguments an object or JSON of one. ShareGPT: JSON of
{name, arguments} as the text of a message. Both become the form that chat templates read.
"""

from collections.abc import Mapping
from typing import Any, Literal

from tasks.common.errors import quoted
from tasks.common.strict_json import JsonError, parse_json
from tasks.data.extra_columns import json_fault
from tasks.data.records import Function, ToolCall
from tasks.data.shapes.values import ShapeError, as_text, described, is_nothing, listed

FUNCTION: Literal["function"] = "function"  # the only type of a tool, or of a call
TOOLS = "tools"  # the column


def as_tools(value: object) -> list[dict[str, Any]]:
    """Read the column of functions that may be called: a list of JSON schemas, or JSON of one; nothing is none.

    Each is {type: function, function: {name, …}} or what stands under `function` alone.

    Raises:
        ShapeError: it is no such list.
    """
    found = _parsed(value, TOOLS)
    if is_nothing(found):
        return []
    if not isinstance(found, list):
        raise ShapeError(f"{TOOLS} is {described(found)} where a list of JSON schemas is needed")
    return [_as_tool(item, f"tool {number} of {TOOLS}") for number, item in enumerate(found, start=1)]


def as_calls(value: object, name: str) -> list[ToolCall]:
    """Read one call or a list of calls, or JSON of either.

    Raises:
        ShapeError: it is neither, or a call lacks its name or has arguments that are no JSON object.
    """
    found = _parsed(value, name)
    items = found if isinstance(found, list) else [found]
    if not items:
        raise ShapeError(f"{name} is an empty list where a call is needed")
    return [_as_call(item, f"call {number} of {name}") for number, item in enumerate(items, start=1)]


def _as_tool(value: object, name: str) -> dict[str, Any]:
    tool = _object(_parsed(value, name), name)
    if FUNCTION not in tool and "name" in tool:
        tool = {"type": FUNCTION, FUNCTION: tool}
    if not _is_of_function(tool):
        raise ShapeError(f"{name} is of the type {quoted(tool['type'])} where a function is needed")
    function = _object(tool.get(FUNCTION), f"the function of {name}")
    _name(function, name)
    others = [key for key, content in tool.items() if key not in ("type", FUNCTION) and not is_nothing(content)]
    if others:
        raise ShapeError(f"{name} holds {listed(others)} beside its function, which is not read")
    _check_json(function, name)
    return {"type": FUNCTION, FUNCTION: _without_null(function)}


def _as_call(value: object, name: str) -> ToolCall:
    call = _object(_parsed(value, name), name)
    if not _is_of_function(call):
        raise ShapeError(f"{name} is of the type {quoted(call['type'])} where the call of a function is needed")
    function = _object(call[FUNCTION], f"the function of {name}") if FUNCTION in call else call
    known = {FUNCTION, "id", "type"} if FUNCTION in call else {"name", "arguments", "id", "type"}
    others = [key for key, content in call.items() if key not in known and not is_nothing(content)]
    if function is not call:
        read = ("name", "arguments")
        others += [key for key, content in function.items() if key not in read and not is_nothing(content)]
    if others:
        raise ShapeError(f"{name} holds {listed(others)} beside the function's name and arguments, which is not read")
    found = Function(name=_name(function, name), arguments=_arguments(function, name))
    if is_nothing(call.get("id")):
        return ToolCall(type=FUNCTION, function=found)
    return ToolCall(id=as_text(call["id"], f"the id of {name}"), type=FUNCTION, function=found)


def _is_of_function(value: Mapping[str, Any]) -> bool:
    """Whether a tool or a call is of a function: so it says, or says nothing."""
    return is_nothing(value.get("type")) or value["type"] == FUNCTION


def _name(function: Mapping[str, Any], name: str) -> str:
    if is_nothing(function.get("name")):
        raise ShapeError(f"{name} names no function")
    return as_text(function["name"], f"the function's name in {name}")


def _arguments(function: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read arguments: an object, or JSON of one; none where there are none."""
    where = f"arguments of {name}"
    arguments = _parsed(function.get("arguments"), where)
    if is_nothing(arguments):
        return {}
    found = _object(arguments, where)
    _check_json(found, where)
    return found


def _parsed(value: object, name: str) -> object:
    """Read a text as JSON; anything else, and a blank text, as it is."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return parse_json(as_text(value, name))
    except JsonError as fault:
        raise ShapeError(f"{name} {fault}") from None


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShapeError(f"{name} is {described(value)} where an object is needed")
    return value


def _check_json(value: dict[str, Any], name: str) -> None:
    if fault := json_fault(value):
        raise ShapeError(f"{name} {fault}")


def _without_null(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Leave out the keys of a JSON schema without a value: Parquet gives every object the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value
