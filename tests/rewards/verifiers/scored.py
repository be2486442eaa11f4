"""What a verifier gives one answer, called as the stages call it."""

import json
from functools import cache
from typing import Any

from tasks.data.records import Message
from tasks.rewards.answered import Answered
from tasks.rewards.functions import FunctionReward
from tasks.rewards.sources import VERIFIERS_FOLDER


def scored(
    name: str,
    answer: str,
    *references: str,
    row: dict[str, Any] | None = None,
    prompt: str = "Why?",
    ids: list[int] | None = None,
    **options: Any,
) -> float:
    asked = [[Message(role="user", content=prompt)]]
    [score] = verifier(name, **options)(Answered(asked, [answer], [ids or []], [list(references)], [row or {}], ["p1"]))
    return score


def verifier(name: str, **options: Any) -> FunctionReward:
    return _loaded(name, json.dumps(options))  # once: one that has a process of its own starts it once


@cache
def _loaded(name: str, options: str) -> FunctionReward:
    return FunctionReward(name, VERIFIERS_FOLDER / f"{name}.py", name, name, json.loads(options))
