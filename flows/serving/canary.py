"""A canary: a share of the requests that another alias answers, the same ones whenever they come."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from flows.serving.requests import ChatRequest
from tasks.common.errors import InputError
from tasks.data.records import Message

FINENESS = 10_000


class Canary(NamedTuple):
    """The other alias and its share."""

    alias: str
    percent: float

    def takes(self, identity: str) -> bool:
        """Tell whether the canary answers somebody: a pure function of who it is."""
        digest = hashlib.sha256(f"{self.alias} {identity}".encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % FINENESS < self.percent * FINENESS / 100


def parse_canary(text: str, champion: str) -> Canary:
    """Read the option --canary, such as challenger:10.

    Raises:
        InputError: it is no alias with a share, or the alias is the champion's.
    """
    alias, _, share = text.partition(":")
    try:
        percent = float(share)
    except ValueError:
        percent = 0.0
    if not alias or not 0 < percent <= 100:
        raise InputError(f"--canary {text} is not an alias and percent, such as challenger:10: correct it")
    if alias == champion:
        raise InputError(f"--canary {text} names the alias that answers the rest: name another")
    return Canary(alias, percent)


def identity(request: ChatRequest, owner: str | None, messages: Sequence[Message]) -> str:
    """Say who asks: the request's user, else the API key's owner, else the conversation by its user's first message."""
    if request.user:
        return f"user {request.user}"
    if owner:
        return f"key {owner}"
    first = next((message for message in messages if message["role"] == "user"), messages[0])
    return f"conversation {first['content']}"
