"""Requests as OpenAI's clients send them: what is taken, what is ignored, and what is refused with a sentence."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.serving.errors import RequestError
from tasks.data.records import Message

MOST_ANSWERS, MOST_STOPS, MOST_LOG_PROBS = 16, 4, 20
ROLES = ("system", "developer", "user", "assistant")
# What would make the answer another one, with the value at which it does nothing. All else that is unknown is ignored.
REFUSED: dict[str, Callable[[Any], bool]] = {
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
    "logit_bias": lambda value: value == {},
    "frequency_penalty": lambda value: value == 0,
    "presence_penalty": lambda value: value == 0,
    "repetition_penalty": lambda value: value == 1,
    "top_k": lambda value: value in (0, -1),
    "min_p": lambda value: value == 0,
    "best_of": lambda value: value == 1,
    **dict.fromkeys(
        (
            "audio",
            "guided_choice",
            "guided_grammar",
            "guided_json",
            "guided_regex",
            "prediction",
            "structured_outputs",
            "web_search_options",
        ),
        lambda _: False,
    ),
}

Given = Annotated[int, Field(ge=1, le=2**31)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


Body = TypeVar("Body", bound=_Body)


class StreamOptions(_Body):
    """What a stream has beside its pieces."""

    include_usage: bool = False


class ChatRequest(_Body):
    """A conversation to answer."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str | None = None
    max_tokens: Given | None = None
    max_completion_tokens: Given | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOG_PROBS)] | None = None
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        """The texts at which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wanted_tokens(self) -> int | None:
        """Tokens of the longest answer, where the request says."""
        return self.max_completion_tokens or self.max_tokens


class Feedback(_Body):
    """What a user thinks of an answer."""

    response_id: str
    thumb: Literal["up", "down"]
    choice: Annotated[int, Field(ge=0)] = 0
    comment: Annotated[str, Field(max_length=10_000)] | None = None


def read_chat(body: bytes) -> tuple[ChatRequest, list[Message]]:
    """Read a request for chat completions, and its conversation as chat templates read it.

    Raises:
        RequestError: it is none that can be answered as it is meant.
    """
    content = _content(body)
    for name, does_nothing in REFUSED.items():
        if content.get(name) is not None and not does_nothing(content[name]):
            raise RequestError(
                400, f"{name} is not supported by this server: leave it out", code="unsupported_parameter", param=name
            )
    request = _parsed(ChatRequest, content)
    if request.top_logprobs and not request.logprobs:
        raise RequestError(400, "top_logprobs needs logprobs: set logprobs to true", param="top_logprobs")
    return request, [_message(number, message) for number, message in enumerate(request.messages)]


def read_feedback(body: bytes) -> Feedback:
    """Read a thumb.

    Raises:
        RequestError: it is none.
    """
    return _parsed(Feedback, _content(body))


def _content(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
        if not isinstance(content, dict):
            raise TypeError
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, TypeError, RecursionError):
        raise RequestError(400, "the body is no JSON object in UTF-8: send one") from None
    return content


def _parsed(kind: type[Body], content: Mapping[str, Any]) -> Body:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))
        fault = first["msg"][0].lower() + first["msg"][1:]
        raise RequestError(400, f"{param}: {fault}", code="invalid_value", param=param) from None


def _message(number: int, message: dict[str, Any]) -> Message:
    place = f"messages.{number}"
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(
            400, f"{place}.role is none of {', '.join(ROLES)}: correct it", code="invalid_value", param=f"{place}.role"
        )
    if message.get("tool_calls"):
        raise RequestError(400, f"{place} calls tools, which this server does not support", param=f"{place}.tool_calls")
    return Message(role="system" if role == "developer" else role, content=_text(place, message.get("content")))


def _text(place: str, content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    ]
    if not texts or len(texts) < len(parts):
        raise RequestError(
            400,
            f"{place}.content is neither a text nor a list of parts of type text, the only ones that are read here",
            code="invalid_value",
            param=f"{place}.content",
        )
    return "\n".join(texts)
