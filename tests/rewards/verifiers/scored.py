"""What a verifier gives one answer, called as the stages call it."""

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
    verifier = FunctionReward(name, VERIFIERS_FOLDER / f"{name}.py", name, name, options)
    asked = [[Message(role="user", content=prompt)]]
    [score] = verifier(Answered(asked, [answer], [ids or []], [list(references)], [row or {}], ["p1"]))
    return score
