"""A conversation in which a function is called, for tests of who reads it."""

from typing import Any

from tasks.data.records import Message, ToolCall

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "track"}}
CALL = ToolCall(type="function", function={"name": "track", "arguments": {"order": 7}})
ASKED = Message(role="user", content="Where is it?")
CALLED = Message(role="assistant", content="", tool_calls=[CALL])
RESULT = Message(role="tool", content="on its way")
